from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.archive import NONE, SEVERAL, Names


def test_find_prefers_path_then_folder_then_suffix():
    names = Names([b"a/x/1.jpg", b"b/x/1.jpg", b"a/2.jpg", b"a/2.png", b"c/3.jpg", b"4.tar.png"])
    wanted = [b"b/x/1.jpg", b"x/1.jpg", b"2.png", b"2", b"old/3.png", b"4.tar", b"5.jpg"]
    assert names.find(Names(wanted)).tolist() == [1, SEVERAL, 3, SEVERAL, 4, 5, NONE]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=30, unique=True))
def test_names_find_themselves(texts):
    raw = list(dict.fromkeys(f"{text.replace('/', '')}#.png".encode() for text in texts))
    names = Names(raw)
    assert [names.raw(row) for row in range(len(names))] == raw
    assert names.find(names).tolist() == list(range(len(raw)))
