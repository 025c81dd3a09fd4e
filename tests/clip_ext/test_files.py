"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from clip_ext.files import replacing


def test_replacing_takes_the_place_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), os.listdir(tmp_path)) == ("new", ["a.json"])


@pytest.mark.parametrize(("error", "message"), [(OSError(28, "No space left on device"), "cannot write .*a.json.*No space"),
                                                (KeyboardInterrupt("stop"), "stop")])  # fmt: skip
def test_replacing_that_fails_keeps_the_old_file(tmp_path: Path, error: BaseException, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(error), match=message), replacing(path) as temporary:
        temporary.write_text("ha")
        raise error
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["a.json"])
