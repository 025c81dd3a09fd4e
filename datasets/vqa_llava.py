"""LLaVA's training file: a list of {id, image, conversations: [{from: human, value}, {from: gpt, value}, ...]}."""

from collections.abc import Mapping
from typing import Any

from datasets.csv_rows import as_text
from datasets.row_faults import Fault
from datasets.vqa_records import Reading, Record, read_boxes

IMAGE_TAG = "<image>"
ASKERS, ANSWERERS = ("human", "user"), ("gpt", "assistant")
# LLaVA's files end short-answer questions with this line; the trainer's prompt says the same.
SHORT_ANSWER_LINE = "Answer the question using a single word or phrase."


def read_conversation(row: Mapping[str, Any], origin: str) -> Reading:
    """Turn one object of the file into a record; several turns make one.

    A last question without answer is allowed if it is the only one: that is a question to be answered. `question_type` (or
    `category`), `style` and `boxes` beside the conversation are read too.
    """
    image = row.get("image")
    images = image if isinstance(image, list) else [image]
    images = [name for name in map(as_text, images) if name]
    if not images:
        return Fault("no image", origin)
    if len(images) > 1:
        return Fault("two images", origin)
    try:
        turns, boxes = read_turns(row["conversations"]), read_boxes(row.get("boxes"))
    except ValueError as error:
        return Fault(str(error), origin)
    return Record(
        (images[0],),
        turns[0][0],
        origin,
        answers=(turns[0][1],) if turns[0][1] else (),
        question_id=as_text(row.get("id", row.get("question_id"))),
        question_type=as_text(row.get("question_type", row.get("category"))),
        style=as_text(row.get("style")),
        boxes=boxes,
        turns=tuple(turns) if len(turns) > 1 else (),
    )


def read_turns(conversation: Any) -> list[tuple[str, str]]:
    """Return (question, answer) pairs without image tags.

    Raises:
        ValueError: If turns do not alternate, an answer among several is missing, or there is more than one image tag, or it
            stands behind the first question.
    """
    if not isinstance(conversation, list) or not conversation or not all(isinstance(turn, dict) for turn in conversation):
        raise ValueError("no conversation")
    for number, turn in enumerate(conversation):
        if turn.get("from") not in (ANSWERERS if number % 2 else ASKERS):
            raise ValueError("turns that do not alternate between human and gpt")
    texts = [as_text(turn.get("value")) for turn in conversation]
    tags = [text.count(IMAGE_TAG) for text in texts]
    if sum(tags) > 1:
        raise ValueError("two images")
    if any(tags[1:]):
        raise ValueError("image tag behind the first question")
    asked, answered = [clean_question(text) for text in texts[0::2]], texts[1::2]
    answered += [""] * (len(asked) - len(answered))
    if len(asked) > 1 and not all((*asked, *answered)):
        raise ValueError("empty question or answer")
    return list(zip(asked, answered, strict=True))


def clean_question(text: str) -> str:
    """Return a question without image tag and without the line that asks for a short answer."""
    return text.replace(IMAGE_TAG, "").strip().removesuffix(SHORT_ANSWER_LINE).strip()
