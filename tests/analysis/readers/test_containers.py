"""TensorBoard, W&B, JSON, tables; compressed; in folders."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
import struct
import time

import numpy as np
import pytest
import zstandard

from stabwatch.analysis.readers import READERS, formats, read_log
from stabwatch.errors import LogError

LOSSES = [3.0 - 0.125 * i for i in range(16)]


def _check(log, steps=None, unit="step"):
    loss = log.runs[0].of("loss")
    assert loss.values.tolist() == pytest.approx(LOSSES)
    assert loss.steps.tolist() == (list(range(16)) if steps is None else steps)
    assert log.runs[0].step_unit == unit


def test_tensorboard_as_its_own_reader_reads_it(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for i, loss in enumerate(LOSSES):
            writer.add_scalar("train/loss", loss, i * 10)
            writer.add_scalar("optim/grad_norm", math.nan if i == 7 else i, i * 10)
    theirs = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    log = read_log(tmp_path)
    _check(log, [10 * i for i in range(16)])
    norm = log.runs[0].of("grad_norm")
    np.testing.assert_array_equal(norm.values, [e.value for e in theirs.Scalars("optim/grad_norm")])
    (file,) = tmp_path.iterdir()
    torn = file.read_bytes()[:-5]
    file.write_bytes(torn)
    assert "in the middle" in " ".join(read_log(file).notes)


@pytest.mark.parametrize(("prefix", "loss"), [("train_L_", "train_L_vae"), ("train_", None)])
def test_event_files_whose_names_are_not_known_have_records(tmp_path, prefix, loss):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for i, x in enumerate(LOSSES):
            for name in ("z_mu", "beta", f"{prefix}vae"):
                writer.add_scalar(name, x, i * 10)
    (run,) = read_log(tmp_path).runs
    assert run.steps.tolist() == [10 * i for i in range(16)]
    assert (run.of("loss").name if loss else run.of("loss")) == loss


def test_event_files_without_scalars_say_so(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("config", "lr=0.1")
    (file,) = tmp_path.iterdir()
    with pytest.raises(LogError, match="0 scalars in 1 file"):
        read_log(file)


def test_json_lines_with_a_prefix_and_nan(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(f'2024 INFO {{"step": {i}, "loss": {x}, "eval": {{"loss": NaN}}}}\n' for i, x in enumerate(LOSSES))
    )
    log = read_log(path)
    _check(log)
    assert np.isnan(log.runs[0].of("eval_loss").values).all()


def test_hugging_faces_state_and_keras_history(tmp_path):
    state = {"best_metric": None, "log_history": [{"step": i, "loss": x, "epoch": i / 4} for i, x in enumerate(LOSSES)]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state, indent=2))
    _check(read_log(tmp_path))
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"loss": LOSSES, "val_loss": LOSSES}))
    _check(read_log(path), unit="epoch")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "  ,   "])
def test_tables_with_blanks_and_evaluation_rows(delimiter, tmp_path):
    rows = [delimiter.join(["epoch", "step", "train_loss_step", "val_loss", "lr"])]
    rows += [delimiter.join(["0", str(i), str(x), "", "0.001"]) for i, x in enumerate(LOSSES)]
    rows.append(delimiter.join(["0", "15", "", "2.5", ""]))
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(rows) + "\n")
    log = read_log(path)
    _check(log)
    assert log.runs[0].of("eval_loss").values.tolist() == [2.5]
    assert len(log.runs[0].steps) == 16, "a row of an evaluation is no training record"


def test_blank_cells_keep_their_rows(tmp_path):
    """What pandas writes for NaN: the loss is blank to the end while rows go on."""
    path = tmp_path / "m.csv"
    path.write_text("step,loss,lr\n" + "".join(f"{i},{'' if i > 9 else 2.5},0.1\n" for i in range(20)))
    run = read_log(path).runs[0]
    assert len(run.of("loss")) == 10 and run.steps.tolist() == list(range(20))


def test_the_export_of_wandb_holds_several_runs(tmp_path):
    head = '"Step","a - train/loss","a - train/loss__MIN","a - train/loss__MAX","b - train/loss"\n'
    path = tmp_path / "wandb_export.csv"
    path.write_text(head + "".join(f'"{i}","{x}","{x}","{x}",""\n' for i, x in enumerate(LOSSES)))
    log = read_log(path)
    assert [run.name for run in log.runs] == ["a", "b"]
    _check(log)


def _field(number, data):
    key = bytes([number << 3 | 2]) if number < 16 else bytes([(number << 3 | 2) & 127 | 128, number >> 4])
    return key + bytes([len(data) & 127 | 128, len(data) >> 7]) + data


def test_wandbs_offline_file_over_its_blocks(tmp_path):
    """Records as wandb_internal.proto has them, in LevelDB's frames; some lie across two blocks of 32 KiB."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for i in range(2000):
        items = b"".join(
            _field(1, _field(2, key) + _field(16, value))
            for key, value in ((b"train/loss", str(3 - i / 1000).encode()), (b"_step", str(i).encode()))
        )
        record = _field(2, items)
        room = 32768 - len(out) % 32768
        if room < 7:
            out += bytes(room)
            room = 32768
        if len(record) + 7 <= room:
            out += struct.pack("<IHB", 0, len(record), 1) + record
        else:
            first, rest = record[: room - 7], record[room - 7 :]
            out += struct.pack("<IHB", 0, len(first), 2) + first + struct.pack("<IHB", 0, len(rest), 4) + rest
    path = tmp_path / "run-x.wandb"
    path.write_bytes(bytes(out))
    loss = read_log(path).runs[0].of("loss")
    assert len(loss) == 2000 and loss.steps[-1] == 1999 and loss.values[-1] == pytest.approx(1.001)
    path.write_bytes(bytes(out[:-9]))
    assert len(read_log(path).runs[0].of("loss")) == 1999, "a torn tail"


def test_the_steps_of_lightning_in_wandbs_file_are_those_of_the_training(tmp_path):
    out = bytearray(b":W&B\xe1\xbe\x00")
    for i, loss in enumerate(LOSSES):
        row = {"trainer/global_step": 49 + 50 * i, "loss" if i else "lr-AdamW": loss, "_step": i}
        items = b"".join(
            _field(1, _field(2, key.encode()) + _field(16, json.dumps(value).encode())) for key, value in row.items()
        )
        record = _field(2, items)
        out += struct.pack("<IHB", 0, len(record), 1) + record
    path = tmp_path / "run-x.wandb"
    path.write_bytes(bytes(out))
    loss = read_log(path).runs[0].of("loss")
    assert loss.steps.tolist() == [49 + 50 * i for i in range(1, 16)]


def test_names_that_begin_like_nan_or_inf_are_no_numbers(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([{"step": i, "loss": 2.5, "subject": s} for i, s in enumerate(("Nancy", "Infantry"))]))
    assert [column.name for column in read_log(path).runs[0].columns] == ["loss"]


def test_wandbs_offline_file(tmp_path):
    wandb = pytest.importorskip("wandb")
    with wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off")) as run:
        for i, x in enumerate(LOSSES):
            run.log({"train/loss": x}, step=i)
    (path,) = tmp_path.rglob("*.wandb")
    size = -1
    while size < (size := path.stat().st_size) or not size:  # its service may go on writing after `finish`
        time.sleep(0.3)
    _check(read_log(path))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress])
def test_compressed_logs_are_told_by_content(pack, tmp_path):
    path = tmp_path / "anything"
    path.write_bytes(pack("".join(f"step: {i} loss: {x}\n" for i, x in enumerate(LOSSES)).encode()))
    _check(read_log(path))


def test_every_reader_is_documented():
    assert len(formats()) == len(READERS) + 1 and all(  # and the folders of MLflow
        name and covers for name, covers in formats()
    )


def test_what_cannot_be_read_says_so(tmp_path):
    with pytest.raises(LogError, match="does not exist"):
        read_log(tmp_path / "none")
    with pytest.raises(LogError, match="has no log"):
        read_log(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(LogError, match="is empty"):
        read_log(tmp_path / "empty")
    (tmp_path / "poem.txt").write_text("no numbers here\n" * 10)
    with pytest.raises(LogError, match="nothing in it looks like"):
        read_log(tmp_path / "poem.txt")
