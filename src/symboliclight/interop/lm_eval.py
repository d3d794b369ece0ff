"""lm-evaluation-harness: every model behind the seam as its model "symboliclight", and its tasks from Python.

`python -m symboliclight.interop.lm_eval ARGUMENTS` is `lm_eval ARGUMENTS` with that model registered. Releases of the
harness that look for the entry points `lm_eval.models` need no more than `lm_eval ARGUMENTS`; 0.4.13 does not.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 - the harness registers its own models only while there are none
import numpy as np
from datasets.exceptions import DatasetsError
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window
from tqdm import tqdm

from symboliclight.core.errors import InputError
from symboliclight.core.provenance import commit
from symboliclight.engine.pack import Precision
from symboliclight.generate.runner import load_runner
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.measure.likelihood import ROWS, TOKENS, Pair, encode_pair, fitted, loglikelihoods

NAME = "symboliclight"
TASKS = Path(__file__).with_name("tasks")  # task files of our own
NEW_TOKENS = 256  # written where a task does not say how many
OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
ONE = ("num_beams", "num_return_sequences", "n", "best_of")  # options that ask for nothing where they are 1
ALL = 1 << 30  # tokens: the harness's repetition penalty knows no window


class HarnessModel(TemplateLM):
    """A checkpoint, run or exported folder as the harness sees a model: it asks in text and is answered in nats."""

    tokenizer = None  # the harness would look for the attributes of a `transformers` tokenizer

    def __init__(
        self, model: str, precision: Precision | None = None, max_length: int | None = None,
        batch_size: int | str = "auto", device: str | None = None, threads: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """`model` is a folder; with `precision` (or an exported folder) the torch-free runtime runs it.

        max_length: tokens read at most; longer contexts lose their beginning (default: the model's max_seq_len, which
        only GPT-2 cannot exceed). batch_size: sequences at once. device: for torch; the CPU where there is no GPU.
        threads: of the runtime. Raises `InputError` for a folder or option that cannot be used.
        """
        super().__init__()
        self.model, self._tokenizer = load_runner(str(model), precision, threads)
        config = self.model.config
        self.max_length = int(max_length or config.max_seq_len)
        limit = getattr(self.model, "context_limit", self.max_length)
        if not 1 < self.max_length <= limit:
            raise InputError(f"max_length must be in 2..{limit} for this model, got {self.max_length}")
        self.rows = ROWS if str(batch_size).startswith("auto") else int(batch_size)
        if self.rows < 1:
            raise InputError(f"batch_size must be positive or auto, got {batch_size}")
        self._about = {"model_folder": str(model), "precision": getattr(self.model, "precision", "torch")}
        if hasattr(self.model, "to"):
            self._device = _device(device)
            self.model.to(self._device)

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows."""
        return self._tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Names prepared requests, where the harness keeps them."""
        return f"{NAME}-{self._tokenizer.hash}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of `string`, after bos unless `add_special_tokens` is False."""
        return self._tokenizer.encode(string, bos=add_special_tokens is not False)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does, but where a piece would span both, they are encoded apart."""
        return encode_pair(self._tokenizer, context, continuation)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {**self._about, "max_length": self.max_length, "tokenizer_hash": self._tokenizer.hash,
                "symboliclight_commit": commit()}

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score (key, context, continuation) requests; what does not fit into `max_length` is cut on the left."""
        return self._sums([list(self._windows(*request[1:])) for request in requests], disable_tqdm)

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[Pair]:
        """One pair; where the model cannot read the continuation at once, the harness's windows over it."""
        if len(continuation) <= getattr(self.model, "context_limit", len(continuation)):
            yield fitted(context, continuation, self.max_length)
            return
        yield from map(make_disjoint_window,
                       get_rolling_token_windows(continuation, context[-1], self.max_length, context_len=1))

    def _sums(self, windows: Sequence[Sequence[Pair]], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """Of each request, the score of its windows together, and whether greedy decoding would write them all."""
        pairs = [pair for some in windows for pair in some]
        with tqdm(total=len(pairs), desc="continuations", disable=disable_tqdm or None) as bar:
            found = iter(loglikelihoods(self.model, pairs, self.rows, bar.update))
        own = [[next(found) for _ in some] for some in windows]
        return [(sum(score for score, _ in some), all(greedy for _, greedy in some)) for some in own]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in the harness's windows of `max_length` tokens; each token counts once."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        windows = [[make_disjoint_window(window) for window in
                    get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)]
                   for ids in texts]
        return [score for score, _ in self._sums(windows, disable_tqdm)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each text until one of its stop strings; contexts leave room for what is to be written.

        Each request draws from a generator of its own, see `request_seeds`. Raises `InputError` for generation options
        that would be ignored.
        """
        out, seeds = [""] * len(requests), request_seeds(requests)
        kinds: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(i)
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm or None) as bar:
            for group in kinds.values():
                options = normalize_gen_kwargs(requests[group[0]].args[1], NEW_TOKENS)
                written = min(options["max_gen_toks"], self.max_length - 1)
                ids = {i: self.tok_encode(requests[i].args[0])[-(self.max_length - written) :] for i in group}
                group.sort(key=lambda i: -len(ids[i]))
                rows = max(1, min(self.rows, TOKENS // len(ids[group[0]])))
                for at in range(0, len(group), rows):
                    batch = group[at : at + rows]
                    texts = generate(self.model, self._tokenizer, [ids[i] for i in batch], written, _sampling(options),
                                     [stop for stop in options["until"] if stop], seed=[seeds[i] for i in batch])
                    for i, completion in zip(batch, texts, strict=True):
                        out[i] = completion.text
                    bar.update(len(batch))
        return out


def request_seeds(requests: Sequence[Any]) -> list[int]:
    """Of each request a seed made of the harness's seed, its text and options, and how often it came before.

    So an answer does not depend on the batch, and a task's `repeats`, which are the same request again, all differ.
    The harness tells models no seed; it sets that of torch, or of numpy where there is no torch.
    """
    torch, times = sys.modules.get("torch"), Counter[str]()
    start = torch.initial_seed() if torch else np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    seeds = []
    for request in requests:
        asked = repr(request.args)
        text = repr((start, asked, times[asked]))
        times[asked] += 1
        seeds.append(int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little"))
    return seeds


def _sampling(options: Any) -> Sampling:
    """What the harness's generation options ask for. Raises `InputError` where one would be ignored."""
    asked = {name: value for name, value in options.items() if value is not None and value is not False}
    for name, value in asked.items():
        if name not in OPTIONS and not (name in ONE and value == 1):
            raise InputError(f"generation option {name}={value!r} is not among those that are known here: "
                             f"{', '.join(OPTIONS)}; leave it out of generation_kwargs")
    penalty = float(asked.get("repetition_penalty", 1))
    if not asked.get("do_sample"):
        return Sampling(temperature=0, repetition_penalty=penalty, repetition_window=ALL)
    return Sampling(float(asked.get("temperature", 1)), int(asked.get("top_k", 0)), float(asked.get("top_p", 1)),
                    float(asked.get("min_p", 0)), penalty, ALL)


def _device(wanted: str | None) -> str:
    """The harness asks for cuda:0 unless told otherwise."""
    import torch

    if wanted is None or (wanted.startswith("cuda") and not torch.cuda.is_available()):
        return "cpu"
    return wanted


def evaluate_tasks(
    model: HarnessModel, tasks: Sequence[str], include_paths: Sequence[str | Path] = (), limit: int | None = None,
    num_fewshot: int | None = None, wikitext: str | None = None,
) -> dict[str, Any]:
    """What the harness finds on `tasks` (names, groups or patterns such as arc_*), as plain JSON values.

    include_paths: folders of further task files. limit: documents of each task at most, for trying. num_fewshot: solved
    examples in each context (default: the task's). wikitext: the file of the task wikitext103. Raises `InputError` for
    an unknown task and for data that cannot be loaded.
    """
    defaults = set(tasks) != {"wikitext103"}  # the harness reads thousands of files to know its own tasks
    manager = TaskManager(include_path=[TASKS, *include_paths], include_defaults=defaults,
                          metadata={"wikitext": wikitext} if wikitext else {})
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise InputError(f"the harness has no task {', '.join(unknown)}; `lm_eval ls tasks` lists its own, "
                         "--include-path DIR adds yours")
    try:
        loaded = manager.load(manager.match_tasks(list(tasks)))
    except InputError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(f"cannot load the data of {', '.join(tasks)}: {' '.join(str(error).split())}; a task file "
                         "with --include-path can name local files, see docs/how-to/lm-eval.md") from error
    inner = {name for names in loaded["group_map"].values() for name in names}
    chosen = [task for name, task in {**loaded["groups"], **loaded["tasks"]}.items() if name not in inner]
    found = simple_evaluate(model, tasks=chosen, limit=limit, num_fewshot=num_fewshot, log_samples=False,
                            task_manager=manager)
    found.pop("pretty_env_info", None)
    return json.loads(json.dumps(found, default=handle_non_serializable))


def register() -> None:
    """Make the model known to the harness of this process; again does no harm."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=f"symboliclight.interop.lm_eval:{HarnessModel.__name__}")


register()


def main() -> None:
    """The command line of the harness."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        sys.stderr.write(f"{NAME}: error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
