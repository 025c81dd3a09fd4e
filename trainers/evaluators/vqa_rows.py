"""Answered questions, each with its scores.

Exact match and its relatives compare normalised answers (`vqa_text`). BLEU and ROUGE-L count words as captions are counted:
lower case, without punctuation, articles and numbers as they are written. BLEU is the mean of the answers' own, each from
n-grams of up to four words or as many as it has, as ArtQuest's is: BLEU-4 of a corpus of answers shorter than four words would
be next to 0, even if all were right. The reference is the reference; ArtQuest's code exchanges the two, and so rewards other
lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.evaluators import vqa_text
from trainers.evaluators.caption_metrics import rouge_l, sentence_bleu
from trainers.evaluators.ptb_tokenizer import tokenize

DEFAULT_TYPE = "vqa"
TARGET_FIELDS = ("question", "answers", "question_type", "impath")
OF_ANSWERS = {
    "accuracy": vqa_text.exact_match,
    "vqa_accuracy": vqa_text.vqa_accuracy,
    "token_f1": vqa_text.token_f1,
    "anls": vqa_text.anls,
    "relaxed": vqa_text.relaxed_match,
}
OF_WORDS = {"bleu": sentence_bleu, "rouge_l": rouge_l}


@dataclass(frozen=True)
class Row:
    """One answered question.

    Attributes:
        answer: As generated.
        references: May be empty: then nothing is scored.
        question_type: Never blank.
        style: "" if it is unknown.
        truncated: Whether generation stopped at its limit.
        fields: Everything that was handed over, for the file.
        scores: Name -> share in [0, 1]; empty without references.
    """

    answer: str
    references: tuple[str, ...]
    question_type: str
    style: str
    truncated: bool
    fields: Mapping[str, Any]
    scores: Mapping[str, float]


def problems_with(output: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """Return what is missing from an output and its target, or contradicts."""
    problems = [] if "answer" in output else ["an output has no 'answer'"]
    problems += [f"a target has no {name!r}" for name in TARGET_FIELDS if name not in target]
    if isinstance(target.get("answers"), str):
        problems.append("a target's 'answers' are text; expected a list of references")
    twice = [name for name in output if name in target and output[name] != target[name]]
    return problems + [f"output and target of a question both have {name!r}, and differ" for name in twice]


def score_rows(outputs: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row per question; see `VQA.process` for the arguments."""
    answers = [str(output["answer"]) for output in outputs]
    references = [tuple(text for one in target["answers"] if (text := str(one)).strip()) for target in targets]
    scores = score_answers(answers, references)
    return [
        Row(
            answers[number],
            references[number],
            question_type=target["question_type"] or DEFAULT_TYPE,
            style=str(target.get("style") or ""),
            truncated=bool(output.get("truncated", False)),
            fields={**target, **output},
            scores=scores[number],
        )
        for number, (output, target) in enumerate(zip(outputs, targets, strict=True))
    ]


def score_answers(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Return all scores of each answer, in [0, 1]; none without references."""
    scored = [number for number, texts in enumerate(references) if texts]
    scores: list[dict[str, float]] = [{} for _ in answers]
    for number in scored:
        texts = references[number]
        scores[number] |= {name: float(compute(answers[number], texts)) for name, compute in OF_ANSWERS.items()}
    if scored:
        words = [tokenize(answers[number]) for number in scored]
        expected = [[tokenize(text) for text in references[number]] for number in scored]
        for name, measure in OF_WORDS.items():
            for number, score in zip(scored, measure(expected, words)[1].tolist(), strict=True):
                scores[number][name] = score
    return scores
