"""Write questions in ArtQuest's form from SemArt's tables. UNOFFICIAL: these are not the questions of ArtQuest.

    python scripts/make_artquest_from_semart.py SEMART -o DATA/artquest

SEMART holds semart_{train,val,test}.csv (cp1252, tabs) and Images/. OUTPUT gets train.csv, val.csv and test.csv with a question
of each of the six types per painting, as far as SemArt knows the answer, and UNOFFICIAL.txt. Pictures are not copied:
DATASET.VQA.IMAGES names their folder, unless OUTPUT lies beside one called SemArt. Descriptions are left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clip_ext.console import accept_any_text  # noqa: E402
from clip_ext.files import replacing  # noqa: E402
from datasets.row_files import read_table  # noqa: E402
from datasets.text_decode import FileForm  # noqa: E402

NODE = "DATASET.VQA"
PARTS = ("train", "val", "test")
COLUMNS = ("IMAGE_FILE", "AUTHOR", "TITLE", "TECHNIQUE", "TYPE", "SCHOOL", "TIMEFRAME")
HEADER = ("image", "question", "answer", "question_type")
QUESTIONS = {  # type -> column and question, in words of our own
    "artist": ("AUTHOR", "who painted this picture?"),
    "school": ("SCHOOL", "which school does this picture belong to?"),
    "timeframe": ("TIMEFRAME", "in which fifty years was this picture made?"),
    "type": ("TYPE", "what type of picture is this?"),
    "technique": ("TECHNIQUE", "which technique was used for this picture?"),
    "title": ("TITLE", "what is the title of this picture?"),
}
NOTE = "UNOFFICIAL: written from SemArt's tables (scripts/make_artquest_from_semart.py); not the questions of ArtQuest.\n"


def read_paintings(file: Path, encoding: str) -> list[Mapping[str, str]]:
    """Return the paintings of one of SemArt's tables, column -> text.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is of another encoding or form (names file and line).
    """
    table = read_table(file, FileForm(NODE, encoding), ", ".join(COLUMNS))
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}; found {', '.join(table.columns)}")
    broken = [origin for origin, cells in table.rows if len(cells) != len(table.columns)]
    if broken:
        raise ValueError(f"{len(broken)} rows have another number of cells than the header: {'; '.join(broken[:10])}")
    return [dict(zip(table.columns, cells, strict=True)) for _, cells in table.rows]


def ask(painting: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (image, question, answer, type) of a painting, lower-cased; nothing where SemArt has no answer."""
    for kind, (column, question) in QUESTIONS.items():
        answer = painting[column].lower()
        if kind == "artist":
            answer = turn_name(answer)
        if kind == "technique":  # sizes in cm follow
            answer = answer.partition(",")[0].strip()
        if any(letter.isalnum() for letter in answer):
            yield painting["IMAGE_FILE"], question, answer, kind


def turn_name(name: str) -> str:
    """Return `vincent van gogh` for `gogh, vincent van`; masters without a name stay as they are."""
    last, _, first = (part.strip() for part in name.partition(","))
    return name if not first or last.startswith(("master", "unknown")) else f"{first} {last}"


def write_questions(semart: Path, output: Path, encoding: str) -> str:
    """Write the three tables and the note; returns what to say about them.

    Raises:
        FileNotFoundError, ValueError: See `read_paintings`; nothing is written then.
    """
    paintings = {part: read_paintings(semart / f"semart_{part}.csv", encoding) for part in PARTS}
    output.mkdir(parents=True, exist_ok=True)
    (output / "UNOFFICIAL.txt").write_text(NOTE, "utf-8")
    lines = [f"UNOFFICIAL questions in {output}; with DATASET.VQA.IMAGES {semart.absolute() / 'Images'}"]
    for part, found in paintings.items():
        rows = [row for painting in found for row in ask(painting)]
        with replacing(output / f"{part}.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
        lines.append(f"{part}: {len(found):,} paintings, {len(rows):,} questions")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    accept_any_text()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("semart", type=Path, metavar="SEMART", help="folder with semart_{train,val,test}.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--encoding", default="cp1252", help="codec of SemArt's tables (default: cp1252)")
    options = parser.parse_args(arguments)
    try:
        print(write_questions(options.semart, options.output, options.encoding))
    except (ValueError, OSError) as error:
        print(str(error).replace(f"{NODE}.ENCODING", "--encoding"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
