"""Free text of any trainer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from stabwatch.analysis.readers.file import LogFile, pieces, without_colours
from stabwatch.analysis.readers.interleaved import in_order
from stabwatch.analysis.readers.line_runs import LineRuns
from stabwatch.analysis.readers.lines import Parser
from stabwatch.analysis.readers.lines_at_once import RunsParser
from stabwatch.analysis.readers.log import Log
from stabwatch.analysis.readers.names import is_error, is_of_policy, is_perplexity, is_score, role_of
from stabwatch.analysis.readers.prefilter import worth_parsing_in
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.regular import regular_lines
from stabwatch.analysis.readers.timestamps import timestamps

_HOLE = re.compile(rb"\0{16,}")
"""The NULs in a log that was truncated while its writer continued."""


def _read(source: LogFile) -> Log:
    parser = RunsParser(source.text)
    line_runs = LineRuns(parser, worth_parsing_in, pieces)
    for first, block in source.blocks():
        line_runs.block(first, without_colours(block))
    return _log(source, parser)


def read_lines(source: LogFile, lines: Iterable[tuple[int, str]]) -> Log:
    """A log from numbered lines."""
    parser = Parser(source.text)
    for number_of_line, text in lines:
        parser.take(number_of_line, text)
    return _log(source, parser)


def _log(source: LogFile, parser: Parser) -> Log:
    notes = parser.end()
    builder, unread = parser.builder, parser.unread
    regular = None if any(map(_tells, builder.keys)) else regular_lines(source.lines())
    if regular is not None:
        notes.append(
            f"No line has a name that is known: of {unread.lines:,} lines with numbers, the {len(regular):,} of the "
            f"most frequent kind are read as columns."
        )
        regular.remarks = builder.remarks
        builder = regular
    run = replace(builder.run(), epoch=parser.epoch)
    run, others = in_order(replace(run, times=timestamps(source.raw_blocks(), run.lines)))
    if others:
        notes.append(f"Several writers alternate in it: {others} of their records are left out.")
    notes += [*builder.notes(), *(unread.notes(always=not run.columns) if regular is None else ())]
    notes.insert(0, f"Free text; recognised: {', '.join(c.name for c in run.columns[:12]) or 'nothing'}.")
    return Log(source.path, "text", (run,), tuple(notes))


def _tells(key: str) -> bool:
    """Whether a column says how a training goes."""
    return role_of(key) != "other" or is_of_policy(key) or is_score(key) or is_error(key) or is_perplexity(key)


def _sniff(source: LogFile) -> bool:
    sample = _HOLE.sub(b"", source.head[:8192])
    odd = sum(b < 9 or 13 < b < 27 or 27 < b < 32 for b in sample)
    return b"\0" not in sample and odd <= 0.01 * len(sample)


READER = Reader(
    "text",
    "what trainers print: Megatron-LM, Megatron-DeepSpeed, DeepSpeed, GPT-NeoX, torchtitan, nanotron, nanoGPT, llm.c, "
    "modded-nanogpt, nanochat, OLMo, Hugging Face's dictionaries, Composer, llm-foundry, fairseq, ESPnet, icefall, "
    "detectron2, mmengine, timm, Keras' and Lightning's bars, PaddlePaddle, Marian, MaxText, Coqui, nnU-Net, darknet, "
    "openpi, LeRobot, verl, Demucs, YOLOX, ultralytics' and YOLOv7's rows, MXNet, BasicSR, CycleGAN, Flax, swift, "
    "rsl_rl, rlpyt, WeNet, OpenNMT, Ignite, Tacotron, llama2.c, Dreamer, Caffe, XGBoost, LightGBM, skorch, fastai, "
    "spaCy, levanter, NeMo, torchtune, mlx, kohya's scripts, Axolotl, Unsloth, LLaMA-Factory, TRL, data2text, Isaac "
    "Lab; training and evaluation under headings; text of full width; tables between bars, boxes or blanks; any "
    "`key: value`, `key=value`, or known name before a number; time "
    "stamps are the times of records; colours, progress bars and the prefixes of launchers and log collectors are "
    "skipped",
    _sniff,
    _read,
)
