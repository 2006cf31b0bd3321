"""Any vision-language model as a reward: how likely it answers a question about the image with yes.

After VQAScore (Lin et al., ECCV 2024, arXiv 2404.01291), with the probability taken among yes and no.
"""

import logging
import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from src.data.batch import Batch
from src.rewards.base import Reward, Score
from src.runtime.checkpoint import DTYPES, located

QUESTION = 'Does this image show "{prompt}"? Answer yes or no.'
TEXTS = frozenset({"prompt", "title"})  # fields that a question can name
TYPES = {**DTYPES, "bfloat16": torch.bfloat16}
logger = logging.getLogger("src.runtime.weights")


class YesNo(Reward):
    """log p(yes) / (p(yes) + p(no)) of the first token of the answer; at most 0. Higher is better.

    The part `answered` is p(yes) + p(no) among all tokens: where it is small, the model does not answer the question.
    Images go through the model's own image processor, on float tensors: that is differentiable, and its resizing does
    not round and clamp to 8 bits. Rows are padded on the right and read at their last token: they are independent.

    Args:
        name: folder or hub id of an image-text-to-text model of transformers with a chat template, such as SmolVLM or
            Qwen-VL. Its weights are read from safetensors.
        question: may name {prompt} and {title}, which become the fields that the reward needs.
        image_options: changes to the options of the image processor, such as {do_image_splitting: false}.
        dtype: of the weights, float32, bfloat16 or float16.
        threshold: from which `src.generate` accepts an image; -0.69 is the log of one half.

    Raises ValueError if the model cannot be loaded, a weight is missing, or it has no chat template or tokens yes and
    no.
    """

    highest = 0.0

    def __init__(
        self,
        name: str = "HuggingFaceTB/SmolVLM-500M-Instruct",
        question: str = QUESTION,
        image_options: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        threshold: float | None = -0.69,
    ) -> None:
        super().__init__()
        if dtype not in TYPES:
            raise ValueError(f"dtype={dtype}: choose from {', '.join(TYPES)}.")
        self.question, self.threshold = question, threshold
        self.fields = frozenset(field for _, field, _, _ in Formatter().parse(question) if field is not None)
        if unknown := sorted(self.fields - TEXTS):
            raise ValueError(f"question={question!r} names {', '.join(unknown)}; it may name {', '.join(TEXTS)}.")
        self.image_options = {"do_rescale": False, **(image_options or {})}
        self.processor, self.model = _loaded(name, TYPES[dtype])
        self.processor.tokenizer.padding_side = "right"
        for word in ("yes", "no"):
            self.register_buffer(word, answers(self.processor.tokenizer, word), persistent=False)
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        asked = [self._asked({field: batch[field][row] for field in self.fields}) for row in range(len(images))]
        inputs = self.processor(
            text=asked, images=[[image] for image in images], padding=True, return_tensors="pt", **self.image_options
        ).to(images.device, self.model.dtype)
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state  # (batch, tokens, width)
        last = inputs["attention_mask"].sum(dim=1) - 1
        logits = self.model.get_output_embeddings()(hidden[torch.arange(len(images), device=last.device), last])
        likely = logits.float().log_softmax(dim=-1)
        yes, no = (likely[:, tokens].logsumexp(dim=-1) for tokens in (self.yes, self.no))
        return Score(F.logsigmoid(yes - no), {"answered": yes.exp() + no.exp()})

    def _asked(self, fields: Mapping[str, str]) -> str:
        """The whole text of a question, up to where the answer begins. Special tokens in a field are removed."""
        special = re.compile("|".join(map(re.escape, self.processor.tokenizer.get_added_vocab())) or "$^")
        fields = {name: special.sub(" ", value) for name, value in fields.items()}
        content = [{"type": "image"}, {"type": "text", "text": self.question.format(**fields)}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def answers(tokenizer: Any, word: str) -> Tensor:
    """The tokens that are a whole answer: the word, also capitalized, with or without a blank before it.

    Raises ValueError if the tokenizer splits all of them.
    """
    forms = [f"{blank}{form}" for blank in ("", " ") for form in (word, word.capitalize())]
    tokens = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    whole = {some[0] for some in tokens if len(some) == 1} - {tokenizer.unk_token_id}
    if not whole:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no token for {word!r}.")
    return torch.tensor(sorted(whole))


def _loaded(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Processor and model; all its weights are in the file."""
    place = located(name)
    try:
        processor = AutoProcessor.from_pretrained(place)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ValueError(f"name={name} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    model, told = loaded
    if lacking := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        raise ValueError(f"{name} lacks {len(lacking)} weights of its model: {', '.join(lacking[:5])}.")
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{name} has no chat template; choose a model that is tuned to answer questions.")
    unknown = f", {len(told['unexpected_keys'])} unknown" if told["unexpected_keys"] else ""
    logger.info("%s: %d tensors loaded, none missing%s", name, len(model.state_dict()), unknown)
    return processor, model
