"""`symboliclight generate` and `symboliclight chat`."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from symboliclight.commands.models import (
    add_device,
    add_model_or_shipped,
    add_precision,
    add_sampling,
    add_threads,
    add_turns,
    read_text,
    sampling_of,
    token_progress,
)
from symboliclight.commands.output import print_json
from symboliclight.commands.streams import utf8_text
from symboliclight.core.atomic import write_atomic
from symboliclight.core.checkpoint import has_turns
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import ends, reply, turn
from symboliclight.generate.runner import load_runner
from symboliclight.generate.sampling import REPEATS, Completion, Generation, Sampling
from symboliclight.interop.datasets import check_samples_folder, save_samples

CONTINUES = "This model was trained to continue text, not to answer. What you write is continued."
KEYS = "/reset forgets everything, /save FILE keeps the conversation, /exit ends it, Ctrl-C ends a reply."


def add(commands: Any) -> None:
    """Add the parsers."""
    p = commands.add_parser("generate", help="continue a prompt")
    p.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to continue (default: standard input)")
    p.add_argument("--prompt-file", metavar="FILE", help="take the prompt from a UTF-8 file")
    add_model_or_shipped(p)
    add_precision(p)
    add_device(p)
    add_threads(p)
    add_sampling(p)
    _add_end_repeats(p)
    p.add_argument("--num-samples", type=int, default=1, metavar="N",
                   help="write N continuations at once; sample i has seed + i (default: 1)")
    p.add_argument("--dataset", metavar="DIR",
                   help="write the samples as a Hugging Face dataset too: prompt, text, seed, settings")
    p.add_argument("--json", action="store_true", help="print JSON with text, tokens, seeds and speed")
    p.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
    p.set_defaults(run=_run_generate)
    p = commands.add_parser("chat", help="write with a model by turns; it keeps what was said in its bounded state")
    add_model_or_shipped(p)
    add_precision(p)
    add_device(p)
    add_threads(p)
    add_sampling(p)
    add_turns(p)
    _add_end_repeats(p)
    p.set_defaults(run=_run_chat)


def _add_end_repeats(parser: argparse.ArgumentParser) -> None:
    count, different = REPEATS
    parser.add_argument("--end-repeats", action=argparse.BooleanOptionalAction, default=True,
                        help=f"end a text whose last {count} tokens hold no more than {different} different ones "
                             "(default: on)")


def _run_generate(args: argparse.Namespace) -> None:
    how = sampling_of(args)
    if args.num_samples < 1:
        raise InputError(f"--num-samples must be positive, got {args.num_samples}")
    prompt = _prompt(args)
    if args.dataset is not None:
        check_samples_folder(args.dataset)
    model, tokenizer = load_runner(args.model, args.precision, args.threads, args.device)
    ids = tokenizer.encode(prompt, bos=True)
    stop_ids = ends(tokenizer) if has_turns(args.model) else None
    run = Generation(model, tokenizer, [ids] * args.num_samples, args.max_tokens, how, args.stop, stop_ids, args.seed,
                     end_repeats=args.end_repeats)
    stream = args.num_samples == 1 and not args.json and not args.no_stream
    start = time.perf_counter()
    if stream:
        _write(prompt)
        for _, text in run:
            _write(text)
        print()
    else:
        with token_progress("writing", args.max_tokens * args.num_samples) as advance:
            _follow(run, advance)
    seconds = time.perf_counter() - start
    if args.dataset is not None:
        save_samples(args.dataset, prompt, run.completions, str(args.model), how, args.max_tokens, args.stop,
                     args.precision)
    if args.json:
        print_json(_figures(prompt, len(ids), run.completions, seconds))
    elif not stream:
        _print_samples(prompt, run.completions)
    repeating = sum(done.finish == "repeat" for done in run.completions)
    if repeating and not args.json:
        which = "" if args.num_samples == 1 else f" {repeating} of {args.num_samples} samples"
        print(f"ended{which}: nothing new came for {REPEATS[0]} tokens (--no-end-repeats writes on)", file=sys.stderr)


def _prompt(args: argparse.Namespace) -> str:
    """The prompt from the one place where it was given."""
    if args.prompt is not None and args.prompt_file is not None:
        raise InputError("a prompt and --prompt-file were both given; leave one out")
    if args.prompt is not None:
        return utf8_text(args.prompt)
    if args.prompt_file is not None:
        return read_text(args.prompt_file)
    if sys.stdin.isatty():
        raise InputError("there is no prompt; give it as an argument, with --prompt-file, or on standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _follow(run: Generation, advance: Callable[[int], None]) -> None:
    """Run to the end, telling how many tokens were written."""
    done = 0
    for _ in run:
        now = sum(len(c.ids) for c in run.completions)
        advance(now - done)
        done = now


def _print_samples(prompt: str, samples: Sequence[Completion]) -> None:
    for i, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"{'' if i == 0 else chr(10)}--- sample {i + 1} of {len(samples)}, seed {sample.seed}")
        print(prompt + sample.text)


def _figures(prompt: str, prompt_tokens: int, samples: Sequence[Completion], seconds: float) -> dict[str, Any]:
    written = sum(len(c.ids) for c in samples)
    return {
        "prompt": prompt, "prompt_tokens": prompt_tokens,
        "samples": [{"text": c.text, "tokens": len(c.ids), "finish": c.finish, "seed": c.seed} for c in samples],
        "tokens": written, "seconds": round(seconds, 4), "tokens_per_second": round(written / seconds, 1),
    }


def _run_chat(args: argparse.Namespace) -> None:
    how = sampling_of(args)
    model, tokenizer = load_runner(args.model, args.precision, args.threads, args.device)
    turns = has_turns(args.model) if args.turns is None else bool(args.turns)
    chat = Chat(model, tokenizer, how, args.max_tokens, args.stop, args.seed, turns,
                args.end_repeats)
    print(KEYS if turns else f"{CONTINUES}\n{KEYS}")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused alone
    while True:
        try:
            line = input("\n> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return
        try:
            if command == "/reset":
                chat.reset()
                print("Everything is forgotten.")
            elif command == "/save":
                chat.save(rest.strip())
                print(f"Written to {rest.strip()}.")
            elif line.strip():
                chat.reply(utf8_text(line))
        except InputError as error:
            print(f"{error}", file=sys.stderr)


class Chat:
    """One conversation. The model has read everything but `unread`; only new tokens are fed to it."""

    def __init__(self, model: Any, tokenizer: Tokenizer, how: Sampling, max_tokens: int, stop: Sequence[str], seed: int,
                 turns: bool, end_repeats: bool) -> None:
        self._model, self._tokenizer, self._how, self._max_tokens, self._stop = model, tokenizer, how, max_tokens, stop
        self._seed, self._turns, self._end_repeats = seed, turns, end_repeats
        self._stop_ids = ends(tokenizer) if turns else {tokenizer.eos_id}
        self.reset()

    def reset(self) -> None:
        """Forget everything that was said."""
        self.text, self._state, self._unread = "", None, [self._tokenizer.bos_id]

    def reply(self, line: str) -> None:
        """Read a line, write the continuation to stdout as it comes; Ctrl-C ends it early."""
        if self._turns:
            heard, ids = f"<|user|>{line}<|end|><|assistant|>", turn(self._tokenizer, "user", line)
            ids += reply(self._tokenizer)
        else:
            heard = "\n" * bool(self.text) + line
            ids = self._tokenizer.encode(heard, special=False)
        prompt = self._unread + ids
        run = Generation(self._model, self._tokenizer, [prompt], self._max_tokens, self._how, self._stop,
                         self._stop_ids, self._seed, self._state, self._end_repeats)
        try:
            for _, text in run:
                _write(text)
        except KeyboardInterrupt:
            pass
        done = run.completions[0]
        print({"limit": " [the context is full: /reset]", "repeat": " [it repeats itself]"}.get(done.finish, ""))
        if done.ids:
            self._state, self._unread = run.state, done.ids[-1:]
            self.text += heard + done.text
            self._seed += 1

    def save(self, path: str) -> None:
        """Write the conversation as UTF-8 text."""
        if not path:
            raise InputError("/save needs a file name: /save FILE")
        try:
            write_atomic(path, (self.text + "\n").encode())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
