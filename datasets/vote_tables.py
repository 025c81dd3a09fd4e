"""Published vote tables of emotion data sets: text files whose columns are found by their header names, never by position.

Public copies of the same file use different column orders; a reader that counts columns learns the wrong emotions in silence.
"""

import csv
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets.image_files import read_text, some

logger = logging.getLogger(__name__)

# Short forms that the published files and folders use.
ALIASES = {"content": "contentment", "sad": "sadness"}
NAME_COLUMNS = ("images-name", "image-name", "image_name", "image_filename", "image filename", "filename", "file", "image")
_DECORATION = re.compile(r"^prob(?:ability)?[. ]+")

Votes = dict[str, tuple[float, ...]]  # image name as the table has it -> votes in the order of the classes


def emotion_name(word: str) -> str:
    """The class name behind a folder name or a column header: case, quotes, brackets, `prob.` and short forms do not matter."""
    bare = _DECORATION.sub("", word.strip().strip("'\"[]").strip().lower())
    return ALIASES.get(bare, bare)


def read_vote_table(file: Path, classes: Sequence[str], *, delimiter: str) -> Votes:
    """Read one row of votes per image.

    Args:
        file: UTF-8 text with a header; cells may stand in quotes of either kind, and columns that no class is named after
            (valence, a trailing empty one) are left alone.
        classes: The columns that have to be there, in the order of the result.
        delimiter: Between cells; a blank stands for any run of white space.
    Returns:
        Image name -> votes, not normalised; an empty cell is NaN. In the order of the file.
    Raises:
        ValueError: One for everything that is wrong with the header, or with the rows (file, lines, values).
    """
    rows = _read_cells(file, delimiter)
    header = rows.pop(0)[1] if rows else []
    name_column, columns = _find_columns(file, header, classes)
    votes: Votes = {}
    problems = []
    for line, cells in rows:
        try:
            name = cells[name_column]
            row = tuple(float(cells[column] or "nan") for column in columns)
        except (IndexError, ValueError):
            problems.append(f"line {line} is {' | '.join(cells)!r}; expected an image name and {len(columns)} numbers")
            continue
        if not name or votes.setdefault(name, row) is not row:
            problems.append(f"line {line}: {'a second row of' if name else 'no image name'} {name!r}")
    if problems:
        raise ValueError(f"{file} has {len(problems)} wrong rows: {some(problems)}")
    return votes


def _read_cells(file: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Line number and bare cells of every line that is not blank."""
    lines = read_text(file).splitlines()
    split = (line.split() for line in lines) if delimiter == " " else csv.reader(lines, delimiter=delimiter)
    cells = ([cell.strip().strip("'\"").strip() for cell in row] for row in split)
    return [(line, row) for line, row in enumerate(cells, 1) if any(row)]


def _find_columns(file: Path, header: Sequence[str], classes: Sequence[str]) -> tuple[int, list[int]]:
    """Column of the image names, and of the classes in their order."""
    names = [emotion_name(cell) for cell in header]
    found = Counter(names)
    if not any(name in found for name in classes):
        raise ValueError(
            f"{file} has no header that names its columns: its first line is {', '.join(header)!r}; expected a column for each "
            f"of {', '.join(classes)}. Columns are never guessed by position: public copies use several orders"
        )
    problems = []
    missing = [name for name in classes if name not in found]
    if missing:
        problems.append(f"no column for {', '.join(missing)}")
    doubled = [name for name in classes if found[name] > 1]
    if doubled:
        problems.append(f"several columns for {', '.join(doubled)}")
    # The first cell of an exported index has no name of its own.
    name_columns = [index for index, name in enumerate(names) if name in NAME_COLUMNS or (index == 0 and not name)]
    if len(name_columns) != 1:
        problems.append(f"{len(name_columns)} columns of image names; expected one, called {NAME_COLUMNS[0]}")
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}. Its header is {', '.join(header)!r}")
    return name_columns[0], [names.index(name) for name in classes]


def reason_to_exclude(votes: Iterable[float]) -> str:
    """Why votes cannot be normalised into a distribution; "" if they can."""
    numbers = list(votes)
    if not all(math.isfinite(number) for number in numbers):
        return "a vote is no finite number"
    if min(numbers) < 0:
        return "a vote is negative"
    return "" if sum(numbers) > 0 else "no votes for any class"


def notice_vote_totals(source: Path, votes: Mapping[str, Sequence[float]], voters: int) -> None:
    """Log how many rows do not hold whole votes that sum to the published number of voters."""
    odd = [
        f"{name}: {', '.join(f'{number:g}' for number in row)}"
        for name, row in votes.items()
        if not reason_to_exclude(row) and (sum(row) != voters or any(number % 1 for number in row))
    ]
    if odd:
        logger.warning("%s: %d of %d rows do not hold %d whole votes: %s", source, len(odd), len(votes), voters, some(odd))
