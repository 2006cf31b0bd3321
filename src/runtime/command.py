"""What all commands share: configuration, threads, one process per output, one-line errors, exit codes."""

import argparse
import functools
import inspect
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from src.config import CONF, ConfigError, compose, describe
from src.runtime.files import locked

HELP = {"-h", "--help"}
EXPECTED = "MisconfigurationException"  # Lightning's ValueError; by name, because importing Lightning takes seconds
TERMINATED = "SIGTERMException"  # raised by Lightning's loops, a SystemExit
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # all 0 or unset in the first process of a training run
HARMLESS = ("does not have many workers", "exists and is not empty", "smaller than the logging interval", "LeafSpec",
            "in eval mode at the start")  # fmt: skip
Main = Callable[[DictConfig], int | None]


def command(name: str, *needed: str) -> Callable[[Main], Callable[..., int]]:
    """Makes `main(config)` the command `python -m src.<name> [group=choice ...] [key=value ...]`; null is an error for
    the `needed` keys.

    The exit code is that of `main` (0: done, 1: some rows failed), 2 after an error, 130 after an interrupt. Errors are
    printed to stderr in one line, or raised with `debug=true`. No other command can write to the same `out` meanwhile.
    """

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(root: Path = CONF) -> int:
            return exit_code(name, functools.partial(_run, name, main, root, needed))

        return run

    return decorate


def answer_early(argv: list[str]) -> None:
    """Exits if the words of `python -m src.<command>` ask for help or are wrong.

    Otherwise Ctrl-C ends the process without a traceback until `exit_code` handles it.
    """
    module = argv[argv.index("-m") + 1] if "-m" in argv else ""
    name = module.removeprefix("src.")
    if module == name or not (CONF / f"{name}.yaml").is_file():
        return
    found: list[DictConfig | None] = []
    code = exit_code(name, lambda: found.append(_composed(name, CONF)))
    if code or found == [None]:
        sys.exit(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def example_command(name: str, write: Callable[..., Path]) -> int:
    """Runs `write`, which writes a folder, as the command `python -m <name> VALUE ... [--option VALUE ...]`.

    Parameters without a default are positional, the others are options.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=write.__doc__)
    for option in inspect.signature(write).parameters.values():
        if option.default is option.empty:
            parser.add_argument(option.name)
        else:
            parser.add_argument(f"--{option.name}", type=type(option.default), default=option.default)
    words = vars(parser.parse_args())
    return exit_code(name, lambda: print(f"wrote {write(**words)}"))


def exit_code(name: str, work: Callable[[], int | None]) -> int:
    """Runs `work`, prints its errors, and returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `answer_early`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII-only terminal must not end a run
        code = work() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of stdout is gone; Python would print another error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns an interrupt into sys.exit(1)
        if type(stop).__name__ == TERMINATED:
            print("; ".join([f"{name}: stopped by SIGTERM", *getattr(stop, "__notes__", [])]) + ".", file=sys.stderr)
            return 128 + signal.SIGTERM
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print(f"{name}: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if "debug=true" in sys.argv:
            raise
        print(f"{name}: {printable(one_line(error))}", file=sys.stderr)
        return 2


def _composed(name: str, root: Path) -> DictConfig | None:
    """The configuration, or None if help was asked for, which is printed."""
    words = [word for word in sys.argv[1:] if word not in HELP]
    if len(words) == len(sys.argv[1:]):
        return compose(name, words, root)
    print(describe(name, words, root))
    return None


def _run(name: str, main: Main, root: Path, needed: Sequence[str]) -> int | None:
    if (config := _composed(name, root)) is None:
        return 0
    if missing := [key for key in needed if config[key] is None]:
        raise ConfigError(f"{missing[0]}=null: a value is needed.")
    prepare(name, config)
    with locked(Path(config.out)) if _writes(config) else nullcontext():
        return main(config)


def one_line(error: Exception) -> str:
    """The message of an error, without the traceback that errors of data loader workers contain."""
    kind = type(error).__name__
    text = re.split(rf"\n[\w.]*{kind}: ", str(error))[-1].strip()
    if isinstance(error, ValueError | OSError) or kind == EXPECTED:
        return " ".join(text.split()) or kind
    advice = "try a smaller batch size" if kind == "OutOfMemoryError" else "debug=true shows where"
    return f"{kind}: {text.partition(chr(10))[0]} ({advice})"


def printable(text: str) -> str:
    """The text with escapes for control characters, which would act on a terminal, and half characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def prepare(name: str, config: DictConfig) -> None:
    """Sets torch's threads, TF32 on GPUs, quiet libraries and one-line warnings."""
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads={config.threads} must be at least 1, or null.")
    if "seed" in config and config.seed is None:
        raise ConfigError("seed=null: a number is needed.")
    import torch  # not needed for --help or a typo

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in HARMLESS:
        warnings.filterwarnings("ignore", f".*{harmless}")
    told = logging.StreamHandler()  # how many tensors published weights have
    told.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    logger = logging.getLogger("src.runtime.weights")
    logger.handlers, logger.propagate = [told], False
    logger.setLevel(logging.INFO)
    warnings.formatwarning = lambda message, *_, **__: f"{name}: {printable(' '.join(str(message).split()))}\n"
    if config.threads:
        torch.set_num_threads(config.threads)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def _writes(config: DictConfig) -> bool:
    """Whether this process locks `out`: only the first process of a training run does."""
    later = "trainer" in config and any(os.environ.get(rank, "0") != "0" for rank in RANKS)
    return bool(config.out) and not later
