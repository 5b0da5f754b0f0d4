"""The program that comes with a folder: it needs onnxruntime, numpy, pillow and, for word pieces, tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = '''\
"""The ten images of a folder that fit a sentence best: python example.py FOLDER "a river beside a road"."""
import json, {imports}sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image
{more}
here, folder, sentence = Path(__file__).parent, Path(sys.argv[1]), sys.argv[2]
settings = json.loads((here / "preprocessing.json").read_text("utf-8"))
side, text = settings["image"]["side"], settings["text"]
files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in settings["image"]["endings"])
{tokens}
def graph(name):
    return onnxruntime.InferenceSession(str(here / f"{{name}}.onnx"))
encode, texts = graph("image_encoder"), graph("text_encoder").run(None, {{"tokens": np.array([tokens], np.int64)}})[0]
pixels = (np.asarray(Image.open(file).convert("RGB").resize((side, side), 2))[None] for file in files)
images = np.concatenate([encode.run(None, {{"images": image{regions}}})[0] for image in pixels])
{scores}
for row in np.argsort(-scores, kind="stable")[:10]:
    print(f"{{scores[row]:.4f}}  {{files[row].relative_to(folder).as_posix()}}")
'''
PIECES = 'tokens = [piece + 1 for piece in Tokenizer.from_file(str(here / text["tokenizer"])).encode(sentence).ids]'
WORDS = """\
words = []
for part in re.split(text["sentence_end"], sentence.lower()):
    for pattern, replacement in text["rules"]:
        part = re.sub(pattern, replacement, part)
    words += part.split()
tokens = [text["ids"].get(word, text["unknown"]) for word in words if word not in text["dropped"]]"""
COSINE = "scores = images @ texts[0] / np.linalg.norm(images, axis=1) / np.linalg.norm(texts)"
PAIRS = 'scores = graph("pair_scores").run(None, {"images": images, "texts": texts})[0][:, 0]'
REGIONS = ', "nodes": np.zeros((1, 20, 20), np.float32), "adjacency": np.zeros((1, 20, 20), np.float32)'


def program(settings: Mapping[str, Any]) -> str:
    """The text of `example.py` for what `preprocessing.json` says."""
    pieces = "tokenizer" in settings["text"]
    return HEAD.format(
        imports="" if pieces else "re, ",
        more="from tokenizers import Tokenizer\n" if pieces else "",
        tokens=PIECES if pieces else WORDS,
        regions=REGIONS if settings["regions"] else "",
        scores=PAIRS if settings["score"] == "pair_scores.onnx" else COSINE,
    )
