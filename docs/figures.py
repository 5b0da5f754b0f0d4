"""Draws the figures of docs/models.md as SVG: `python docs/figures.py` writes docs/images/<model>.svg."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "images"
WIDTH, LINE, PAD, GAP, COLUMN = 176, 17, 11, 52, 228  # pixels: a box, a line, above and below text, between boxes

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .line { stroke: #57606a; fill: none; stroke-width: 1.5 }
  .head { fill: #57606a }
  .dash { stroke-dasharray: 5 4 }
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .small { fill: #57606a; font-size: 12px }
  .mark { fill: #1f2328; font-style: italic; text-anchor: middle }
  .input { fill: #f6f8fa; stroke: #8c959f }
  .image { fill: #ddf4ff; stroke: #0969da }
  .text { fill: #dafbe1; stroke: #1a7f37 }
  .audio { fill: #fff1e5; stroke: #bc4c00 }
  .joint { fill: #fbefff; stroke: #8250df }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d }
    .line { stroke: #9198a1 }
    .head { fill: #9198a1 }
    text, .mark { fill: #f0f6fc }
    .small { fill: #b1bac4 }
    .input { fill: #21262d; stroke: #656c76 }
    .image { fill: #0c2d6b; stroke: #388bfd }
    .text { fill: #033a16; stroke: #2ea043 }
    .audio { fill: #5a1e02; stroke: #db6d28 }
    .joint { fill: #3c1e70; stroke: #a371f7 }
  }"""


@dataclass(frozen=True)
class Box:
    """A step of a model: a title and lines below it, in a column and at a height (pixels, its middle)."""

    column: int
    middle: int
    kind: str
    title: str
    lines: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Its left edge, pixels."""
        return GAP // 2 + self.column * COLUMN

    @property
    def height(self) -> int:
        """Its height, pixels."""
        return 2 * PAD + LINE * (1 + len(self.lines))

    def svg(self) -> str:
        """Its rectangle and its text."""
        top = self.middle - self.height // 2
        rows = [(self.title, "title"), *((line, "small") for line in self.lines)]
        texts = [
            f'  <text class="{style}" x="{self.left + 12}" y="{top + PAD + 13 + LINE * row}">{escape(text)}</text>'
            for row, (text, style) in enumerate(rows)
        ]
        rectangle = (
            f'  <rect class="{self.kind}" x="{self.left}" y="{top}" width="{WIDTH}" height="{self.height}" rx="6"/>'
        )
        return "\n".join([rectangle, *texts])


@dataclass(frozen=True)
class Arrow:
    """From the right edge of one box to the left edge of another, with a letter over its end."""

    start: str
    end: str
    mark: str = ""
    dashed: bool = False
    offset: int = 0  # pixels that it ends below the middle of the box

    def svg(self, boxes: dict[str, Box]) -> str:
        """Its line with a head, and its letter."""
        start, end = boxes[self.start], boxes[self.end]
        x0, y0, x1, y1 = start.left + WIDTH, start.middle, end.left, end.middle + self.offset
        # Long ways stay on the height of their start and turn just before the box that they lead to.
        turn = x1 - GAP // 2 - 4
        dash = " dash" if self.dashed else ""
        path = f"M{x0} {y0} H{turn} V{y1} H{x1 - 7}" if y0 != y1 else f"M{x0} {y0} H{x1 - 7}"
        parts = [
            f'  <path class="line{dash}" d="{path}"/>',
            f'  <path class="head" d="M{x1} {y1} l-9 -4.5 v9 z"/>',
        ]
        if self.mark:
            parts.append(f'  <text class="mark" x="{x0 + 12}" y="{y0 - 7}">{escape(self.mark)}</text>')
        return "\n".join(parts)


@dataclass(frozen=True)
class Figure:
    """A titled drawing of boxes and arrows; `caption` is what is read aloud in its place."""

    title: str
    caption: str
    boxes: dict[str, Box]
    arrows: tuple[Arrow, ...]

    def svg(self) -> str:
        """The whole file."""
        width = max(box.left for box in self.boxes.values()) + WIDTH + GAP // 2
        height = max(box.middle + box.height // 2 for box in self.boxes.values()) + GAP // 2
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                f'viewBox="0 0 {width} {height}" role="img">',
                f"  <title>{escape(self.title)}</title>",
                f"  <desc>{escape(self.caption)}</desc>",
                f"  <style>{STYLE}\n  </style>",
                f'  <rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
                f'  <text class="title" x="{GAP // 2}" y="28">{escape(self.title)}</text>',
                *(arrow.svg(self.boxes) for arrow in self.arrows),
                *(box.svg() for box in self.boxes.values()),
                "</svg>\n",
            ]
        )


FIGURES = {
    "amfmn": Figure(
        "AMFMN: each image sees a caption in its own way",
        "Image and caption are encoded apart. The image's vector v gates the caption's vector t; the score is the "
        "cosine of v and the gated vector F.",
        {
            "image": Box(0, 100, "input", "Image", ("3 x S x S pixels",)),
            "caption": Box(0, 230, "input", "Caption", ("word ids",)),
            "pyramid": Box(1, 100, "image", "ResNet-18 pyramid", ("stages 1, 2: fine map", "stages 3, 4: coarse")),
            "words": Box(1, 230, "text", "Skip-thoughts GRU", ("620 numbers per word", "state of 2,400")),
            "attention": Box(2, 100, "image", "Self-attention", ("both maps make a gate", "for the pooled image")),
            "project": Box(2, 230, "text", "Linear, ReLU", ("to D = 512",)),
            "guide": Box(3, 200, "joint", "Guided caption", ("F = sigmoid(W v) * t", "one F for each pair")),
            "score": Box(4, 100, "joint", "Score", ("cosine of v and F",)),
        },
        (
            Arrow("image", "pyramid"),
            Arrow("pyramid", "attention"),
            Arrow("attention", "score", "v"),
            Arrow("attention", "guide", offset=-14),
            Arrow("caption", "words"),
            Arrow("words", "project"),
            Arrow("project", "guide", "t", offset=30),
            Arrow("guide", "score", "F", offset=12),
        ),
    ),
    "galr": Figure(
        "GaLR: the whole image and its regions",
        "A global vector g and a local vector l of the image are fused; the score is the cosine with the caption's "
        "vector t. Without regions, g alone stands for the image.",
        {
            "image": Box(0, 95, "input", "Image", ("3 x S x S pixels",)),
            "regions": Box(0, 195, "input", "Regions", ("20 nodes, adjacency",)),
            "caption": Box(0, 295, "input", "Caption", ("word ids",)),
            "encoder": Box(1, 95, "image", "Image encoder", ("AMFMN's, of ResNet-18", "to unit length")),
            "graph": Box(1, 195, "image", "Graph encoder", ("3 graph layers, Linear", "to unit length")),
            "words": Box(1, 295, "text", "Caption encoder", ("AMFMN's, of", "skip-thoughts")),
            "fusion": Box(
                2, 145, "joint", "Fusion (MIDF)", ("l corrected by g", "g supplemented by l", "gated + summed")
            ),
            "score": Box(3, 195, "joint", "Score", ("cosine",)),
        },
        (
            Arrow("image", "encoder"),
            Arrow("encoder", "fusion", "g", offset=-18),
            Arrow("regions", "graph"),
            Arrow("graph", "fusion", "l", offset=22),
            Arrow("caption", "words"),
            Arrow("words", "score", "t", offset=12),
            Arrow("fusion", "score", "v", offset=-10),
        ),
    ),
    "swan": Figure(
        "SWAN: scene and details, word in context",
        "The pooled stages of a ResNet-50 and 128 tokens of its stem are aggregated to v. The last word of a caption, "
        "enhanced by gated attention over all words, is t. The score is their cosine.",
        {
            "image": Box(0, 140, "input", "Image", ("3 x S x S pixels",)),
            "caption": Box(0, 290, "input", "Caption", ("word ids",)),
            "resnet": Box(1, 140, "image", "ResNet-50", ("frozen, or trained with", "is_finetune: true")),
            "global": Box(2, 95, "image", "Scene, global", ("stages 2 to 4 mixed", "pooled, MLP")),
            "local": Box(
                2, 190, "image", "Details, local", ("stem, kernels 1, 3, 5:", "128 tokens, attention", "weighted sum")
            ),
            "aggregate": Box(3, 140, "image", "Aggregation", ("MLP of both views",)),
            "words": Box(1, 290, "text", "Words and GRU", ("both directions", "averaged")),
            "gated": Box(2, 290, "text", "Gated attention", ("words in their context",)),
            "last": Box(3, 290, "text", "Last word", ("MLP, unit length",)),
            "score": Box(4, 215, "joint", "Score", ("cosine of v and t",)),
        },
        (
            Arrow("image", "resnet"),
            Arrow("resnet", "global"),
            Arrow("resnet", "local"),
            Arrow("global", "aggregate", offset=-10),
            Arrow("local", "aggregate", offset=10),
            Arrow("caption", "words"),
            Arrow("words", "gated"),
            Arrow("gated", "last"),
            Arrow("aggregate", "score", "v", offset=-10),
            Arrow("last", "score", "t", offset=10),
        ),
    ),
    "mcrn": Figure(
        "MCRN: three sources through one shared module",
        "Image, caption and spoken caption have an encoder each. One shared module turns every feature f into an "
        "embedding g; any two are compared by their cosine. In pretraining a discriminator guesses the source of g.",
        {
            "pixels": Box(0, 90, "input", "Image", ("3 x S x S pixels",)),
            "caption": Box(0, 185, "input", "Caption", ("word ids",)),
            "speech": Box(0, 280, "input", "Spoken caption", ("spectrogram image",)),
            "image": Box(1, 90, "image", "Image encoder", ("AMFMN's, of ResNet-18",)),
            "text": Box(1, 185, "text", "Caption encoder", ("AMFMN's, skip-thoughts",)),
            "audio": Box(1, 280, "audio", "Audio encoder", ("ResNet-18, Linear",)),
            "share": Box(
                2, 185, "joint", "Shared module", ("batch norm, attention", "3 weighted patterns", "attention")
            ),
            "score": Box(3, 135, "joint", "Score", ("cosine of any two g",)),
            "critic": Box(3, 240, "joint", "Discriminator", ("pretraining only:", "which source is g from?")),
        },
        (
            Arrow("pixels", "image"),
            Arrow("caption", "text"),
            Arrow("speech", "audio"),
            Arrow("image", "share", "f", offset=-22),
            Arrow("text", "share", "f"),
            Arrow("audio", "share", "f", offset=22),
            Arrow("share", "score", "g"),
            Arrow("share", "critic", dashed=True),
        ),
    ),
    "dual_encoder": Figure(
        "DualEncoder: two towers, two heads, one cosine",
        "Each tower knows its side of the world already and may stay frozen: its features are then computed once and "
        "kept. A small head on each side brings them into one space.",
        {
            "pixels": Box(0, 90, "input", "Image", ("3 x S x S pixels",)),
            "caption": Box(0, 195, "input", "Caption", ("pieces of its tokenizer",)),
            "image": Box(1, 90, "image", "Image tower", ("a network of timm", "EfficientNet-Lite0")),
            "text": Box(1, 195, "text", "Text tower", ("a sentence encoder", "MiniLM, mean of tokens")),
            "image_head": Box(2, 90, "image", "Head", ("Linear, GELU,", "dropout, Linear")),
            "text_head": Box(2, 195, "text", "Head", ("Linear, GELU,", "dropout, Linear")),
            "score": Box(3, 143, "joint", "Score", ("cosine",)),
        },
        (
            Arrow("pixels", "image"),
            Arrow("caption", "text"),
            Arrow("image", "image_head"),
            Arrow("text", "text_head"),
            Arrow("image_head", "score", "v", offset=-10),
            Arrow("text_head", "score", "t", offset=10),
        ),
    ),
}
"""By the name of the model."""


def figures() -> dict[str, str]:
    """The SVG of each model by its file name."""
    return {f"{name}.svg": figure.svg() for name, figure in FIGURES.items()}


if __name__ == "__main__":
    for name, text in figures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
