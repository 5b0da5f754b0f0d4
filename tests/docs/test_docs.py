"""The documentation says what is: commands, options, flags, links and code exist, and made pages are up to date.

Nothing is trained here: a program's own parser reads a command's arguments and the program stops there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch.distributed.run

import option
from layers.registry import registered
from option.fields import leaves
from option.pretraining import BackboneOptions, ModalityOptions
from option.reference import SOURCES, page, split_unit
from option.schema import Options
from option.unread import published_keys
from tests import ROOT
from tests.markdown import PAGES, anchors, blocks, commands, inline_code, links, read
from tests.tiny import make_precomp
from utils import InputError

SCRIPT_FILES = {path.name: path for room in ("exec", "bench") for path in (ROOT / room).glob("*.sh")}
SCRIPTS = {name: path.read_text(encoding="utf-8") for name, path in SCRIPT_FILES.items()}
YAMLS = sorted((ROOT / "option").glob("*.yaml"))
MADE_BY_PAGES = {block.file for path in PAGES for block in blocks(path) if block.file}
SYSTEM = {"sudo apt install espeak-ng", "source .venv/bin/activate"}
FIGURES: dict[str, str] = runpy.run_path(str(ROOT / "docs" / "figures.py"))["figures"]()


class Stopped(Exception):
    """Carries what a parser made of the arguments, or the parser, out of a program that goes no further."""


@cache
def module_of(program: str) -> Any:
    """The module behind `train.py`, `data.toy` or `vocab`."""
    name = program.removesuffix(".py")
    package = ROOT / name.replace(".", "/")
    return importlib.import_module(f"{name}.__main__" if (package / "__main__.py").is_file() else name)


def stopped_at_parser(
    program: str, arguments: Sequence[str], result: Callable[[argparse.ArgumentParser, Any], object]
) -> Any:
    """Start a program and end it where it would read its arguments; returns `result` of its parser and them."""

    def stop(parser: argparse.ArgumentParser, given: Any = None) -> None:
        raise Stopped(result(parser, given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            module_of(program).main(arguments)
        except Stopped as stopped:
            return stopped.args[0]
    raise AssertionError(f"{program} reads no arguments")


PARSE = argparse.ArgumentParser.parse_args


def parsed(program: str, arguments: Sequence[str]) -> argparse.Namespace:
    """What the program's own parser makes of the arguments; a fault of them fails the test."""
    try:
        given: argparse.Namespace = stopped_at_parser(program, arguments, PARSE)
    except SystemExit:
        pytest.fail(f"python {program} {shlex.join(arguments)}: refused")
    return given


@cache
def flags_of(program: str) -> frozenset[str]:
    """Every flag and every subcommand of a program."""
    return frozenset(stopped_at_parser(program, [], lambda parser, _: list(_flags(parser))))


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield name
                yield from _flags(inner)


def programs() -> list[str]:
    """All that `python` or `python -m` can run, but for the drawing of the figures, which takes no arguments."""
    places = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*/__main__.py")]
    names = [str(path.relative_to(ROOT)) for path in places if '== "__main__"' in read(path)]
    names = [name for name in names if not name.startswith(("docs/", "tests/"))]
    return sorted(
        name if "/" not in name else name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
        for name in names
    )


def load(path: str, overrides: Sequence[str]) -> None:
    """Load a YAML with overrides as its entry point does."""
    if option.is_pretraining(ROOT / path):
        option.load_pretraining_options(ROOT / path, overrides)
    else:
        option.load_options(ROOT / path, overrides)


def split_program(words: Sequence[str]) -> tuple[str, list[str]]:
    """Program, as `programs` names it, and arguments of what follows `python`."""
    program, *arguments = words[1:] if words[0] == "-m" else words
    return (f"{program}.py" if words[0] == "-m" and (ROOT / f"{program}.py").is_file() else program), arguments


def check_python(words: Sequence[str]) -> None:
    """Check `python FILE.py ...` or `python -m MODULE ...`."""
    program, arguments = split_program(words)
    if program == "pytest":
        assert all((ROOT / word).is_file() for word in arguments if word.endswith(".py"))
    elif program in programs():
        given = parsed(program, arguments)
        path_opt = getattr(given, "path_opt", None)  # None: the program has none, or takes the ready model
        written_by_commands = Path(path_opt or "").match("checkpoint/*/0/options.yaml") or str(path_opt).startswith(
            "out/"
        )
        if path_opt is not None and path_opt not in MADE_BY_PAGES and not written_by_commands:
            load(given.path_opt, given.set)
    else:
        assert program.endswith(".py"), program
        assert (ROOT / program).is_file(), program
        assert not arguments


def check_script(script: str, arguments: Sequence[str]) -> None:
    """Check `bash exec/SCRIPT.sh ...`, or one of bench/, whose arguments are train.py's, or its own."""
    folder, _, name = script.rpartition("/")
    assert name in SCRIPTS, script
    assert folder == SCRIPT_FILES[name].parent.name
    if name == "environment.sh":
        extras = read(ROOT / "pyproject.toml").partition("[project.optional-dependencies]")[2]
        assert all(re.search(rf"^{extra} = \[", extras, re.MULTILINE) for extra in arguments)
    elif name == "run_mcrn.sh":
        assert (ROOT / "option" / f"{arguments[0].upper()}_MCRN.yaml").is_file()
        parsed("train.py", ["--path_opt", "x", *arguments[1:]])
    elif name == "run_multi_gpu.sh":
        assert arguments[0].isdigit()
        check_python(["train.py", "--path_opt", arguments[1], *arguments[3:]])
    elif name == "gpu_check.sh":
        assert all(re.search(rf"^#   {word} ", SCRIPTS[name], re.MULTILINE) for word in arguments if word[:2] == "--")
    elif name not in ("run_tests.sh", "run_experiment.sh"):
        parsed("train.py", ["--path_opt", "x", *arguments])


def check(words: Sequence[str]) -> None:
    """Check one command of a page."""
    if " ".join(words) in SYSTEM:
        return
    assert words[0] in ("python", "bash", "torchrun"), f"unknown program: {shlex.join(words)}"
    if words[0] == "python":
        check_python(words[1:])
    elif words[0] == "torchrun":
        given = torch.distributed.run.parse_args(words[1:])
        assert given.training_script == "train.py"
        check_python([given.training_script, *given.training_script_args])
    else:
        check_script(words[1], words[2:])


IN_BLOCKS = [
    (path.stem, words)
    for path in PAGES
    for block in blocks(path)
    if block.language == "bash"
    for words in commands(block.text)
]


@pytest.mark.parametrize(("page_name", "words"), IN_BLOCKS, ids=lambda part: part if isinstance(part, str) else part[1])
def test_a_command_is_read_by_its_program(page_name: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize(
    "wrong",
    [
        "python train.py --path_opt option/NONE.yaml",
        "python train.py --path_opt option/UCM_AMFMN.yaml --set optim.lrr=1",
        "python train.py --path_opt option/UCM_AMFMN.yaml --set optim.lr=fast",
        "python nothing.py",
        "python -m data.nothing",
        "bash exec/nothing.sh",
        "bash exec/environment.sh nothing",
        "bash exec/gpu_check.sh",
        "bash bench/gpu_check.sh --tiny",
        "rm x",
    ],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, InputError)):
        check(shlex.split(wrong))


def test_a_refused_flag_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(pytest.fail.Exception):
        check(shlex.split("python test.py --path_opt option/UCM_AMFMN.yaml --reranked"))
    assert "--reranked" in capsys.readouterr().err


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_in_the_text_exist(path: Path) -> None:
    for code in inline_code(path):
        words = code.split()
        if words[0] == "python":
            program, arguments = split_program(words[1:])
            assert program in programs() or (ROOT / program).is_file(), code
            if program in programs():
                assert {word for word in arguments if word.startswith("--")} <= flags_of(program), code
            given = [word for word in arguments if word.startswith("option/")]
            assert all((ROOT / name).is_file() for name in given), code
        elif words[0] == "bash":
            assert Path(words[1]).name in SCRIPTS, code


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_flags_in_the_text_exist(path: Path) -> None:
    known = frozenset().union(*map(flags_of, programs()))
    for code in inline_code(path):
        for flag in re.findall(r"(?<!\S)--[\w-]+", code):
            assert flag in known or any(flag in text for text in SCRIPTS.values()), code


def declared_keys() -> set[str]:
    """Every dotted key of experiments, models and pretrainings."""
    found: set[str] = set()
    for kind in (Options, BackboneOptions, ModalityOptions):
        for name, field in kind.model_fields.items():
            if name != "model" and isinstance(field.annotation, type):
                found |= leaves(field.annotation, name).keys()
    for registration in registered().values():
        found |= leaves(registration.parameters, "model").keys()
    return found


KNOWN = declared_keys() | published_keys().keys()
BLOCKS = {key.split(".")[0] for key in KNOWN}
MODEL_BLOCKS = {key.split(".")[1] for key in KNOWN if key.startswith("model.") and key.count(".") > 1}


def full_names(key: str) -> list[str]:
    """A key as a page writes it, with or without `model.` before it; none where it is no key, such as a file."""
    block = "" if key.endswith(".safetensors") else key.split(".")[0]
    return [key] * (block in BLOCKS) + [f"model.{key}"] * (block in MODEL_BLOCKS)


def accepted(settings: Sequence[str]) -> bool:
    """Whether some shipped YAML loads with all these overrides."""
    for path in YAMLS:
        try:
            load(str(path.relative_to(ROOT)), settings)
        except InputError:
            continue
        return True
    return False


def wrong_options(code: str) -> bool:
    """Whether inline code names a key that does not exist, or gives one a value that no shipped YAML accepts."""
    code = code.removeprefix("--set ")
    if re.fullmatch(r"\w+(\.\w+)+\*?", code):
        names = full_names(code.rstrip("*."))
        end = "" if code.endswith("*") else "."
        return bool(names) and not any(f"{key}.".startswith(f"{name}{end}") for key in KNOWN for name in names)
    if re.fullmatch(r"(\w+(\.\w+)+(=|: )\S+ ?)+", code):
        settings = code.replace(": ", "=").split()
        names = full_names(settings[0])
        within = [[f"{name.removesuffix(settings[0])}{setting}" for setting in settings] for name in names]
        return bool(names) and not any(map(accepted, within))
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_options_in_the_text_exist(path: Path) -> None:
    assert list(filter(wrong_options, inline_code(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "optim.lrr",
        "seq2vec.typo",
        "fusion.wrong_*",
        "optim.amp=bf17",
        "tcge.rounding: up",
        "--set optim.lr=1e-4 dataset.batch=64",
    ],
)
def test_a_wrong_option_is_found(code: str) -> None:
    assert wrong_options(code)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_anchors_lead_somewhere(path: Path) -> None:
    for target in links(path):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    assert {(index.parent / target).resolve() for target in links(index)} == set(PAGES) - {index}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_in_the_pages_compiles(path: Path) -> None:
    for block in blocks(path):
        assert block.language in ("bash", "python", "yaml", ""), block.language
        if block.language == "python":
            ast.parse(block.text)


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_script_is_well_formed(script: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    subprocess.run([bash, "-n", SCRIPT_FILES[script]], check=True)


def test_the_page_of_options_is_up_to_date() -> None:
    committed = read(ROOT / "docs" / "options.md")
    assert committed == page(), "docs/options.md is out of date: python -m option --out docs/options.md"


def test_the_page_of_options_names_every_key_with_a_purpose() -> None:
    rows = [line.split(" | ") for line in page().splitlines() if line.startswith("| `") and line.count(" | ") == 5]
    assert {row[0].strip("|` ") for row in rows} == declared_keys() - {"model.name"}
    assert [row[0] for row in rows if len(row[4]) < 8] == []
    by_key = {row[0].strip("|` "): [cell.strip(" |") for cell in row[1:]] for row in rows}
    assert by_key["dataset.image_size"][:3] == ["an integer, at least 64, at most 4096", "`256`", "pixels"]
    assert by_key["model.cross_attention.vgmf"][-1] == "AMFMN, eq. 15-17"
    assert by_key["k_fold.experiment_name"][1] == "needed"


def test_a_source_is_of_a_key() -> None:
    known = declared_keys()
    assert [prefix for prefix in SOURCES if not any(f"{key}.".startswith(f"{prefix}.") for key in known)] == []


def test_a_unit_stands_at_the_end() -> None:
    assert split_unit("side of a [square] image [pixels]") == ("side of a [square] image", "pixels")
    assert split_unit("no unit") == ("no unit", "")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_up_to_date_and_its_text_fits(name: str) -> None:
    text = FIGURES[name]
    assert read(ROOT / "docs" / "images" / name) == text, f"docs/images/{name} is out of date: python docs/figures.py"
    space = {"svg": "http://www.w3.org/2000/svg"}
    root = ElementTree.fromstring(text)
    boxes = [
        [float(box.attrib[side]) for side in ("x", "y", "width", "height")] for box in root.findall("svg:rect", space)
    ]
    labels = [text for text in root.findall("svg:text", space) if text.get("class") != "mark"]
    for label in labels[1:]:  # the first is the title above the boxes
        x, y = float(label.attrib["x"]), float(label.attrib["y"])
        end = x + 7.3 * len(label.text or "")
        inside = [b for b in boxes[1:] if b[0] < x and end < b[0] + b[2] + 6 and b[1] < y < b[1] + b[3]]
        assert len(inside) == 1, label.text
    for first in boxes[1:]:
        overlapping = [b for b in boxes[1:] if b != first and _overlap(first, b)]
        assert overlapping == []


def _overlap(first: list[float], second: list[float]) -> bool:
    return all(first[i] < second[i] + second[i + 2] and second[i] < first[i] + first[i + 2] for i in (0, 1))


def test_the_cheap_commands_of_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabulary, preparation and statistics, as the pages write them, in a folder with an own data set."""
    monkeypatch.chdir(tmp_path)
    made = make_precomp(tmp_path / "data" / "sydney_precomp")
    shutil.copytree(made / "images", tmp_path / "my_images" / "images")
    names = sorted(path.name for path in (made / "images").iterdir())
    lines = [f"{name}\timage {number} of a {name.split('_')[0]}" for number, name in enumerate(names)]
    (tmp_path / "my_images" / "captions.txt").write_text("\n".join(lines))
    wanted = ("python -m vocab", "python -m data.prepare my_images", "python -m option")
    texts = [shlex.join(words) for _, words in IN_BLOCKS]
    for text in dict.fromkeys(text for text in texts if text.startswith(wanted) and "toy" not in text):
        program, *arguments = shlex.split(text)[2:]
        module_of(program).main(arguments)
    assert (tmp_path / "data" / "sydney_precomp" / "vocab.json").is_file()
    assert (tmp_path / "data" / "my_precomp" / "train_caps.txt").is_file()
