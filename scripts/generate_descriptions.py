"""Write class descriptions with a language model that runs on this machine.

    python scripts/generate_descriptions.py --classes classes.txt --model Qwen/Qwen2.5-1.5B-Instruct --out my_classes.json
    python train.py ... TRAINER.LAFTER.TEXT.DESCRIPTIONS my_classes.json

The model is any causal language model of transformers (extra `vlm`) with safetensors weights: a folder, or a name on the
Hugging Face hub. Nothing is sent to a remote service. Each class gets the same number of sentences, each naming its
class. An interrupted run continues where it stopped and ends with the file that it would have written without the
interruption.
"""

import argparse
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import open_clip
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_ext.console import accept_any_text  # noqa: E402
from clip_ext.files import replacing  # noqa: E402
from clip_ext.text_files import clean_sentences, normalise_name  # noqa: E402

# (question, beginning of the answer): a plain model only continues the beginning, an instructed one reads both. None has
# an article before the name, which suits objects, places and feelings alike.
QUESTIONS = (
    ("What does a photo of {} look like? Answer in one sentence.", "A photo of {} shows"),
    ("Which visible signs help to recognise {}? Answer in one sentence.", "Visible signs of {} are"),
    ("Which colours, shapes and surfaces belong to {}? Answer in one sentence.", "Typical of {} are"),
    ("Where does a photographer find {}, and what is around? Answer in one sentence.", "A photographer finds {}"),
    ("Describe a picture with the title {} in one sentence.", "The picture titled {} is"),
)
ANSWERS_PER_QUESTION = 4
MAX_NEW_TOKENS = 60
SAMPLING = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0}
CLIP_CONTEXT = 77  # tokens of the common CLIP models, begin and end included

Answers = dict[str, list[list[str]]]  # class -> sentences of each round
Ask = Callable[[str, int], list[str]]  # (class, round) -> sentences


class AnswerWriter:
    """A local language model that answers `QUESTIONS` about a class, the same for the same seed, class and round."""

    def __init__(self, model: str, *, seed: int, device: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, dtype="auto")
        self.model = self.model.to(device).eval()
        self.seed = seed
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = self.tokenizer.eos_token_id if pad is None else pad
        self.clip_tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def __call__(self, classname: str, round_number: int) -> list[str]:
        """Return new sentences that name the class and fit CLIP's context, the questions taking turns."""
        name = classname.replace("_", " ")
        per_question = [
            [sentence for text in self._complete(name, question, start, round_number) for sentence in split_sentences(text)]
            for question, start in QUESTIONS
        ]
        in_turn = (sentence for turn in itertools.zip_longest(*per_question) for sentence in turn if sentence)
        return [sentence for sentence in in_turn if self._is_usable(sentence, name)]

    def _is_usable(self, sentence: str, name: str) -> bool:
        fits = len(self.clip_tokenizer.encode(sentence)) + 2 <= CLIP_CONTEXT
        return fits and normalise_name(name) in normalise_name(sentence)

    @torch.no_grad()
    def _complete(self, name: str, question: str, start: str, round_number: int) -> list[str]:
        start = start.format(name)
        prompt = self._prompt(question.format(name), start)
        # A chat template writes the model's special tokens itself.
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not self.tokenizer.chat_template)
        ids = ids.to(self.model.device)
        digest = hashlib.sha256(f"{self.seed}|{name}|{round_number}|{question}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        rows = self.model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            num_return_sequences=ANSWERS_PER_QUESTION,
            pad_token_id=self.pad_token_id,
            **SAMPLING,
        )
        # Some tokenizers drop the first space of a piece, so the new text is what follows the decoded prompt.
        length = len(self.tokenizer.decode(ids["input_ids"][0], skip_special_tokens=True))
        return [start + self.tokenizer.decode(row, skip_special_tokens=True)[length:] for row in rows]

    def _prompt(self, question: str, start: str) -> str:
        if not self.tokenizer.chat_template:
            return start
        turn = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) + start


def split_sentences(text: str) -> list[str]:
    """Split an answer into its complete sentences; what breaks off at the end of the text or of a line is dropped."""
    pieces = (piece for line in text.splitlines() for piece in re.split(r"(?<=[.!?])\s+", line))
    tidy = (re.sub(r"\s+([.,;:!?])", r"\1", " ".join(piece.split())) for piece in pieces)
    return [sentence for sentence in tidy if sentence.endswith((".", "!", "?"))]


def read_classes(path: Path) -> list[str]:
    """Read one class name per line; empty lines and those that begin with `#` do not count.

    Raises:
        ValueError: If there is no name, or two lines name the same class (lists all of them).
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    seen: dict[str, str] = {}
    twins = [name for name in names if seen.setdefault(normalise_name(name), name) is not name]
    if twins or not names:
        raise ValueError(f"--classes {path}: " + (f"named twice: {', '.join(twins)}" if twins else "no class in it"))
    return names


def collect(answers: Answers, ask: Ask, *, per_class: int, rounds: int) -> Iterator[str]:
    """Fill `answers` round by round until every class has enough clean sentences; yields after each class asked.

    A round asks the classes that were short at its beginning, so that a run continued in mid-round asks the same ones.

    Raises:
        ValueError: If classes are still short after the last round (lists them with their counts).
    """
    for number in range(rounds):
        short = find_short({name: lists[:number] for name, lists in answers.items()}, per_class)
        if not short:
            return
        for name in [name for name, lists in answers.items() if len(lists) == number]:
            answers[name].append(ask(name, number) if name in short else [])
            yield f"round {number + 1}: {name} has {len(answers[name][-1])} new sentences"
    if short := find_short(answers, per_class):
        counts = ", ".join(f"{name} {count}" for name, count in short.items())
        raise ValueError(
            f"after {rounds} rounds {len(short)} of {len(answers)} classes have fewer than {per_class} clean sentences: "
            f"{counts}. Use a stronger model, raise --rounds (what there is, is kept) or lower --per-class"
        )


def clean(answers: Answers) -> dict[str, list[str]]:
    """Return each class's sentences after the cleaning that the text bank applies."""
    kept, _ = clean_sentences([list(itertools.chain.from_iterable(lists)) for lists in answers.values()])
    return dict(zip(answers, kept, strict=True))


def find_short(answers: Answers, per_class: int) -> dict[str, int]:
    """Return the classes with fewer clean sentences than wanted, and how many they have."""
    return {name: len(sentences) for name, sentences in clean(answers).items() if len(sentences) < per_class}


def load_unfinished(path: Path, source: dict, classes: Sequence[str]) -> Answers:
    """Read the answers of an interrupted run, or begin with none.

    Raises:
        ValueError: If the file was begun with another model, seed, questions or classes.
    """
    if not path.is_file():
        return {name: [] for name in classes}
    state = json.loads(path.read_text(encoding="utf-8"))
    wanted = {**source, "classes": list(classes)}
    begun = {**state["source"], "classes": list(state["answers"])}
    if differing := [key for key in wanted if wanted[key] != begun.get(key)]:
        what = "; ".join(f"{key} {begun.get(key)!r}, now {wanted[key]!r}" for key in differing)
        raise ValueError(f"{path} was begun with other settings ({what}): repeat those, or delete the file")
    return state["answers"]


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def generate(options: argparse.Namespace) -> None:
    """Write `--out`; an interruption leaves `<out>.unfinished`, which the next call continues."""
    if options.out.exists():
        raise ValueError(f"--out {options.out} exists; delete it or choose another name")
    classes = read_classes(options.classes)
    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    questions = [" ".join(form) for form in QUESTIONS]
    source = {"model": options.model, "seed": options.seed, "questions": questions}
    answers = load_unfinished(unfinished, source, classes)
    writer = AnswerWriter(options.model, seed=options.seed, device=options.device)
    for news in collect(answers, writer, per_class=options.per_class, rounds=options.rounds):
        write_json(unfinished, {"source": source, "answers": answers})
        print(news, flush=True)
    chosen = {name: sentences[: options.per_class] for name, sentences in clean(answers).items()}
    licence = f"Written by a language model; see the licence of {options.model}."
    write_json(options.out, {"source": source, "licence": licence, "classes": chosen})
    unfinished.unlink(missing_ok=True)
    print(f"wrote {options.out}: {options.per_class} sentences for each of {len(chosen)} classes")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    accept_any_text()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=Path, required=True, help="text file, one class name per line, # comments")
    parser.add_argument("--model", required=True, help="folder or hub name of a causal language model (safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="descriptions file to write (.json)")
    parser.add_argument("--per-class", type=positive, default=25, help="sentences per class (default 25)")
    parser.add_argument("--rounds", type=positive, default=8, help="times a class is asked at most (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    try:
        generate(parser.parse_args(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
