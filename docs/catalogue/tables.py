"""The tables that stand in documents between markers, in English and in Chinese.

A document has `<!-- generated: NAME -->` and `<!-- end -->`; what stands between is replaced.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import attnzoo

from . import chinese, facts
from .page import sentence

Language = Literal["en", "zh"]
DOCUMENTS: Mapping[str, Language] = {
    "README.md": "en",
    "README.zh-CN.md": "zh",
    "docs/choosing.md": "en",
}
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Choice(NamedTuple):
    """A row of the decision table."""

    block: str
    en: tuple[str, str]  # the data, and what is wanted
    zh: tuple[str, str]


CHOICES = (
    Choice("se", ("image", "a first attempt: a gate for each channel"), ("图像", "先试这个：逐通道门控")),
    Choice("eca", ("image", "channel attention for almost nothing"), ("图像", "几乎零开销的通道注意力")),
    Choice("cbam", ("image", "channels and places, cheaply"), ("图像", "低开销的通道加空间注意力")),
    Choice("coordatt", ("image", "positions matter, in a mobile network"), ("图像", "移动端网络，位置信息重要")),
    Choice("simam", ("image", "no new parameters"), ("图像", "不允许增加参数")),
    Choice("sknet", ("image", "to replace a 3x3 convolution"), ("图像", "替换 3x3 卷积")),
    Choice("danet_position", ("image", "all pairs of pixels, on a small map"), ("图像", "小特征图上的全局注意力")),
    Choice("agent", ("image", "global attention on a large map"), ("图像", "大特征图上的全局注意力")),
    Choice("aff", ("two maps", "to fuse a skip connection"), ("两个特征图", "融合跳跃连接")),
    Choice("u_mixformer", ("pyramid of maps", "a decoder for segmentation"), ("特征金字塔", "语义分割解码器")),
    Choice("carafe", ("coarse map", "to double it, without guidance"), ("低分辨率特征", "无引导的两倍上采样")),
    Choice("jbu_stack", ("coarse map", "16 times the size, guided by the image"), ("低分辨率特征", "以原图引导的 16 倍上采样")),
    Choice("dilated_inception", ("sequence", "local patterns of several lengths"), ("序列", "多种长度的局部模式")),
    Choice("ct_msa", ("sequence", "causal attention in windows"), ("序列", "窗口内的因果注意力")),
    Choice("pyraformer", ("sequence", "long, with patterns at several scales"), ("序列", "长序列，多尺度模式")),
    Choice("mamba", ("sequence", "long and causal, in linear time"), ("序列", "长序列，因果，线性时间")),
    Choice("ltae", ("image series", "one map out of all dates"), ("影像时间序列", "把所有日期汇成一幅图")),
    Choice("utae", ("image series", "a class for every pixel"), ("影像时间序列", "逐像素分类")),
)  # fmt: skip


def decision(language: Language) -> str:
    """Which block for which data and purpose, with its price and the line that builds it."""
    head = {
        "en": "| data | what you want | block | parameters | MACs | forward ms | code |",
        "zh": "| 数据 | 需求 | 模块 | 参数量 | 乘加数 | 前向耗时（毫秒） | 代码 |",
    }[language]
    lines = [head, "|---|---|---|---:|---:|---:|---|"]
    for choice in CHOICES:
        data, want = choice.zh if language == "zh" else choice.en
        cost, _, standard = facts.common(choice.block)
        row = facts.measured().get(choice.block)
        time = f"{row[0]['latency_forward_ms']:.3g}" if row else "–"
        lines.append(
            f"| {data} | {want} | `{choice.block}` | {facts.short(cost.params)} | "
            f"{facts.short(cost.macs)}{'' if standard else '*'} | {time} | "
            f"`{facts.plain_line(choice.block)}` |"
        )
    return "\n".join(lines)


def catalogue(language: Language) -> str:
    """Every name with a sentence, its layouts and its price."""
    head = {
        "en": "| name | what it does | layout | parameters | MACs |",
        "zh": "| 名称 | 作用 | 布局 | 参数量 | 乘加数 |",
    }[language]
    lines = [head, "|---|---|---|---:|---:|"]
    for name in attnzoo.names():
        record, common = attnzoo.describe(name), facts.common(name)
        translated = chinese.TITLES.get(name) if language == "zh" else None
        what = translated or sentence(record)
        star = "" if common.standard else "*"
        lines.append(
            f"| `{name}` | {what} | {', '.join(record.layouts)} | "
            f"{facts.short(common.cost.params)} | {facts.short(common.cost.macs)}{star} |"
        )
    return "\n".join(lines)


def sizes(language: Language) -> str:
    """The size at which the tables give prices, and the machine of the times."""
    image, sequence, series = (
        facts.size_text(layout) for layout in ("image", "sequence", "image_series")
    )
    row, folder = facts.measured()["se"]
    machine = f"{row['device_name']}"
    if language == "en":
        return (
            "Parameters, and multiply-adds (MACs) of one sample, are given at one size for each "
            f"layout: images with {image}; sequences with {sequence}; image series with {series}. "
            "A star marks a block that only takes the size of its own example. Times are those of "
            f"a batch on one thread of an {machine} that other programs shared: orders of magnitude "
            f"([all rows](benchmarks/results/{folder}/bench.md))."
        )
    words = {" channels": " 通道", " steps": " 步", " dates of": " 个日期 ×"}
    for theirs, ours in words.items():
        image, sequence, series = (t.replace(theirs, ours) for t in (image, sequence, series))
    return (
        f"参数量与单个样本的乘加数（MACs）按布局取统一尺寸：图像 {image}；序列 {sequence}；影像时间序列 "
        f"{series}。带 * 的模块只接受自身示例的尺寸。耗时为一个批次在 {machine} 单线程上的前向时间，"
        f"测量时机器上还有其他程序，只供比较数量级（[全部数据](benchmarks/results/{folder}/bench.md)）。"
    ).replace(", ", "、")


PARTS: Mapping[str, Callable[[Language], str]] = {
    "decision": decision,
    "catalogue": catalogue,
    "sizes": sizes,
}


def updated(path: str) -> str:
    """The text of a document with its generated parts as they should be."""
    language = DOCUMENTS[path]
    text = (facts.ROOT / path).read_text(encoding="utf-8")

    def part(match: re.Match[str]) -> str:
        made = PARTS[match[2]](language)
        if path.startswith("docs/"):
            made = made.replace("](", "](../")
        return f"{match[1]}{made}\n{match[3]}"

    return _PART.sub(part, text)


def write() -> list[Path]:
    """Update all documents; returns those that changed."""
    changed = []
    for name in DOCUMENTS:
        path, text = facts.ROOT / name, updated(name)
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
