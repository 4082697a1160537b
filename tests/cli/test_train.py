"""What `nsnet train` and `nsnet ablate` make of their arguments."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.environment import rows_of
from cli.train import _options
from model.errors import ModelError
from model.training.lora import LoraOptions
from model.training.options import TrainOptions, preset
from model.training.trainer import FitOptions


def options(folder: Path, changes: Any, name: str = "default") -> TrainOptions:
    path = folder / "options.json"
    path.write_text(json.dumps(changes))
    return _options(path, name)


def test_what_options_do_not_name_stays_the_presets(tmp_path: Path) -> None:
    base = preset("default")
    assert _options(None, "default") == base
    chosen = options(tmp_path, {"head": {"steps": 300}, "views": {"patches": {"canvases": 4}}})
    assert base.head is not None
    assert chosen.head == base.head.model_copy(update={"steps": 300})
    assert chosen.views.patches == base.views.patches.model_copy(update={"canvases": 4})
    assert chosen.views.whole_share == base.views.whole_share
    assert chosen.network == base.network
    assert chosen.shares == base.shares


def test_a_null_replaces_and_is_replaced(tmp_path: Path) -> None:
    changes = {"distil": None, "lora": {"blocks": [4, 5], "rank": 2}, "head": None}
    chosen = options(tmp_path, changes)
    assert chosen.distil is None
    assert chosen.lora == LoraOptions(blocks=(4, 5), rank=2)
    assert chosen.head is None
    frozen = {"live": False, "lora": None, "head": {"steps": 7}}
    chosen = options(tmp_path, frozen, "paper")
    assert chosen.lora is None
    assert chosen.head == FitOptions(steps=7)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{", '{"head": {"pace": 1}}'])
def test_what_are_no_options_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"options\.json: ") as caught:
        _options(path, "default")
    assert "\n" not in str(caught.value)


def test_an_image_of_several_splits_is_trained_on_once(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("path,label,group\na.png,ai,g\nb.png,real,h\n")
    assert [row.path.name for row in rows_of([path], "train,val")] == ["a.png", "b.png"]
    path.write_text(
        "path,label,group,split\nc.png,ai,g,val\nd.png,real,h,val\n"
        "a.png,ai,g,train\nb.png,real,h,train\n"
    )
    names = [row.path.name for row in rows_of([path], "train,val")]
    assert names == ["a.png", "b.png", "c.png", "d.png"]
