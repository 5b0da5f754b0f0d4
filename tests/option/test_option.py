"""Options: what loads, what every fault says, and that nothing but `InputError` ever comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

import option
from layers import registry
from layers.amfmn import AMFMN, AmfmnParameters
from layers.towers import LastBlocks
from option import parameters
from option.dataset import Dataset
from option.fields import allowed, leaves
from option.optim import Optim
from option.parameters import ModelBlock, ModelParameters, Parameters
from option.pretraining import BackboneOptions, ModalityOptions
from option.schema import ExperimentLogs, KFold, Options, Rerank
from option.unread import PUBLISHED_KEYS, blocks_of, published_keys
from tests import ROOT
from utils import InputError

ALL = sorted((ROOT / "option").glob("*.yaml"))
SHIPPED = [path for path in ALL if not option.is_pretraining(path)]

MINIMAL = """
model: {name: AMFMN}
dataset: {data_path: data/x_precomp, vocab_path: vocab/x.json}
k_fold: {experiment_name: x}
"""

BACKSLASH = ". In double quotes a backslash begins an escape: write a path with / or in single quotes"

# The published files' keys, in their form: plain None and False, an empty data_split, trailing slashes.
PUBLISHED_AMFMN = """
model:
    multiscale: {multiscale_input_channel: 3, multiscale_output_channel: 1}
    cross_attention: {att_type: "soft_att"}
    seq2vec: {arch: skipthoughts, dir_st: /data, type: BayesianUniSkip, dropout: 0.25, fixed_emb: False}
    embed: {embed_dim: 512}
    name: AMFMN
dataset:
    datatype: rsitmd
    data_split:
    data_path: 'data/rsitmd_precomp/'
    image_path: '/data/rsitmd_images/'
    vocab_path: 'vocab/rsitmd_splits_vocab.json'
    batch_size: 100
    batch_size_val: 70
    workers: 3
optim:
    epochs: 70
    lr: 0.0002
    lr_decay_param: 0.7
    lr_update_epoch: 20
    grad_clip: 0
    max_violation: 0
    margin: 0.2
    resume: False
logs: {eval_step: 1, print_freq: 10, ckpt_save_path: "checkpoint/", logger_name: 'logs/'}
k_fold: {experiment_name: 'rsitmd_aba_mv', nums: 5, current_num: 0}
"""

# What each published model's files hold beyond AMFMN's.
PUBLISHED_EXTRAS = {
    "AMFMN": "{}",
    "GaLR": """
        model:
            fusion: {correct_local_hidden_dim: 512, correct_local_hidden_drop: 0.2, supplement_global_hidden_dim: 512,
                     supplement_global_hidden_drop: 0.2, dynamic_fusion_dim: 512, dynamic_fusion_drop: 0.2,
                     mca_DROPOUT_R: 0.1, mca_HIDDEN_SIZE: 512, mca_FF_SIZE: 1024, mca_MULTI_HEAD: 8,
                     mca_HIDDEN_SIZE_HEAD: 64}
            global_local_weight: {global: None, local: "None"}
        dataset: {local_path: local.npy}
        """,
    "MCRN": """
        model:
            embed: {share_dropout: 0.3}
            share: {n_sa: 1, sa_drop: 0.3}
            num_modal: 3
            discriminator: {in_size: 512, mid_size: 128, out_size: 3, dropout_r: 0.1}
        dataset: {audio_path: /data/specs/}
        optim: {lr_D: 0.0002, lr_D_decay_param: 0.8, lr_D_update_epoch: 20, lr_finetune: 0.0003,
                lr_finetune_decay_param: 0.7, lr_finetune_update_epoch: 20, resume: '/x/MCRN_best.pth.tar',
                resume_Discriminator: False, methods: "all"}
        """,
    "SWAN": """
        model: {embed: {embed_dim: 512}, word_dim: 300, num_layers: 1, use_bidirectional_rnn: True, is_finetune: False,
                resnet_ckpt: aid_resnet50.pth}
        """,
}


def merge(tree: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in extra.items():
        old = tree.get(key, {})
        merged[key] = merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def load_text(text: str, *overrides: str) -> Options:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return option.load_options(path, overrides)


def faults_of(text: str, *overrides: str) -> list[str]:
    """The lines of the message, without the folder of the file."""
    with pytest.raises(InputError) as caught:
        load_text(text, *overrides)
    return [line.rpartition("/x.yaml: ")[2].strip() for line in str(caught.value).split("\n")]


def with_line(key: str, value: str) -> str:
    """`MINIMAL` with one more value, written as YAML."""
    *blocks, last = key.split(".")
    nested: Any = {last: "VALUE"}
    for block in reversed(blocks):
        nested = {block: nested}
    return yaml.safe_dump(merge(yaml.safe_load(MINIMAL), nested)).replace("VALUE", value)


def value_of(options: Options, key: str) -> Any:
    value: Any = options
    for part in key.split("."):
        value = getattr(value, part)
    return value


class TestShipped:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_loads_without_a_note_and_round_trips(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        options = option.load_options(path)
        assert caplog.messages == []
        assert load_text(option.to_yaml(options)) == options

    @pytest.mark.parametrize("path", sorted(set(ALL) - set(SHIPPED)), ids=lambda path: path.stem)
    def test_a_pretraining_loads_without_a_note_and_round_trips(
        self, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        options = option.load_pretraining_options(path)
        assert caplog.messages == []
        (tmp_path / "resolved.yaml").write_text(option.to_yaml(options))
        assert option.load_pretraining_options(tmp_path / "resolved.yaml") == options

    def test_no_two_share_a_run_folder(self) -> None:
        names = [option.load_options(path).k_fold.experiment_name for path in SHIPPED]
        names += [
            option.load_pretraining_options(path).logs.experiment_name for path in sorted(set(ALL) - set(SHIPPED))
        ]
        assert len(set(names)) == len(names) >= 5

    def test_each_kind_is_told_by_its_blocks(self) -> None:
        with pytest.raises(InputError, match=r"python pretrain.py --path_opt .*AID_RESNET50.yaml"):
            option.load_options(ALL[0].parent / "AID_RESNET50.yaml")

    @pytest.mark.parametrize("name", ["RSITMD", "RSICD", "UCM"])
    def test_published_training_values(self, name: str) -> None:
        options = option.load_options(SHIPPED[0].parent / f"{name}_AMFMN.yaml")
        optim = options.optim
        assert (optim.epochs, optim.lr, optim.lr_decay_param, optim.lr_update_epoch) == (70, 2e-4, 0.7, 20)
        assert (optim.margin, optim.max_violation, options.dataset.batch_size) == (0.2, False, 100)
        assert options.dataset.image_folder == Path(f"data/{name.lower()}_precomp/images")


class TestPublished:
    def test_amfmn_file_keeps_its_values(self, caplog: pytest.LogCaptureFixture) -> None:
        options = load_text(PUBLISHED_AMFMN)
        assert isinstance(options.model, AmfmnParameters)
        assert options.model.seq2vec.dir_st == Path("/data")
        assert options.dataset.image_folder == Path("/data/rsitmd_images")
        assert options.optim == Optim.whole().model_validate({})
        assert (options.optim.resume, options.optim.max_violation, options.optim.grad_clip) == (None, False, 0.0)
        assert (options.k_fold.experiment_name, options.k_fold.nums) == ("rsitmd_aba_mv", 5)
        (note,) = caplog.messages
        assert note.rpartition("without effect: ")[2] == (
            "logs.logger_name (the log lies in the run's folder); k_fold.current_num (--folds chooses the folds)"
        )

    @pytest.mark.parametrize("model", PUBLISHED_EXTRAS)
    def test_every_models_keys_load_and_are_reported_once(self, model: str, caplog: pytest.LogCaptureFixture) -> None:
        extra = yaml.safe_load(PUBLISHED_EXTRAS[model])
        chosen = model if model in registry.registered() else "AMFMN"
        tree = merge(merge(yaml.safe_load(PUBLISHED_AMFMN), extra), {"model": {"name": chosen}})
        options = load_text(yaml.safe_dump(tree))
        assert options.model.name == chosen
        (note,) = caplog.messages
        known = leaves(type(options.model), "model")
        for block, keys in extra.get("model", {}).items():
            for key in keys if isinstance(keys, dict) else [""]:
                dotted = f"model.{block}.{key}".rstrip(".")
                nothing_given = isinstance(keys, dict) and keys[key] == "None"
                assert (dotted in note) == (dotted not in known and not nothing_given)

    def test_a_file_with_all_keys(self, caplog: pytest.LogCaptureFixture) -> None:
        tree = yaml.safe_load(PUBLISHED_AMFMN)
        for extra in PUBLISHED_EXTRAS.values():
            tree = merge(tree, yaml.safe_load(extra))
        options = load_text(yaml.safe_dump(tree))
        assert options.optim.resume == Path("/x/MCRN_best.pth.tar")
        assert (options.dataset.audio_path, options.dataset.local_path) == (Path("/data/specs"), Path("local.npy"))
        (note,) = caplog.messages
        reported = [key for key in published_keys() if key in note.replace(",", " ").replace(" (", " ").split()]
        # fusion 11, share_dropout, share 2, discriminator 4, num_modal, SWAN's 5, optim 6, logger_name, current_num
        assert len(reported) == 32
        assert "model.resnet_ckpt (not part of AMFMN)" in note

    def test_the_table_names_a_key_once_and_none_that_the_schema_has(self) -> None:
        declared = {key for name, block in BLOCKS.items() for key in leaves(block, name)}
        assert not declared & set(published_keys())
        assert len(published_keys()) == sum(len(keys.split()) for _, keys, _ in PUBLISHED_KEYS)


BLOCKS: dict[str, type[Parameters]] = {
    "dataset": Dataset,
    "optim": Optim,
    "logs": ExperimentLogs,
    "k_fold": KFold,
    "rerank": Rerank,
}


class TestValues:
    @pytest.mark.parametrize(
        ("key", "written", "value"),
        [
            ("optim.lr", "1e-4", 1e-4),
            ("optim.lr", "'1e-4'", 1e-4),
            ("optim.lr", "2E-05", 2e-5),
            ("optim.grad_clip", "2", 2.0),
            ("rerank.candidates", "20", 20),
            ("rerank.w2", "2", 2.0),
            ("optim.amp", "off", "off"),
            ("dataset.cache", "off", "off"),
            ("dataset.batch_size", "0100", 100),
            ("optim.max_violation", "1", True),
            ("optim.max_violation", "false", False),
            ("optim.max_violation", "off", False),
            ("optim.resume", "False", None),
            ("optim.resume", "off", None),
            ("optim.resume", "", None),
            ("optim.resume", "runs/last.pth", Path("runs/last.pth")),
            ("dataset.image_path", "None", None),
            ("dataset.image_path", "'None'", None),
            ("dataset.image_path", "~", None),
            ("dataset.datatype", "2024-05-01", "2024-05-01"),
            ("optim.loss", "triplet", {"triplet": 1.0}),
            ("optim.loss", "{triplet: 1, contrastive: 0.5}", {"triplet": 1.0, "contrastive": 0.5}),
            ("k_fold.experiment_name", "007", "007"),
            ("k_fold.experiment_name", "1e-4", "1e-4"),
            ("k_fold.experiment_name", "'null'", "null"),
            ("k_fold.experiment_name", "实验", "实验"),
        ],
    )
    def test_a_value_is_read_by_the_type_of_its_key(self, key: str, written: str, value: Any) -> None:
        for options in (load_text(with_line(key, written)), load_text(MINIMAL, f"{key}={written}")):
            assert value_of(options, key) == value
            assert type(value_of(options, key)) is type(value)
            assert load_text(option.to_yaml(options)) == options

    def test_overrides_win_and_the_last_one_of_a_key_counts(self) -> None:
        options = load_text(MINIMAL, "optim.lr=1", "optim.lr=1e-3", "dataset={batch_size: 7, workers: 0}")
        assert (options.optim.lr, options.dataset.batch_size, options.dataset.workers) == (1e-3, 7, 0)
        assert options.dataset.data_path == Path("data/x_precomp")

    def test_an_override_takes_the_place_of_all_losses(self) -> None:
        options = load_text(MINIMAL, "optim={loss: {triplet: 1, dynamic: 2}}", "optim.loss=contrastive")
        assert options.optim.loss == {"contrastive": 1.0}
        with pytest.raises(InputError, match=r"optim\.loss: given \{\}"):
            load_text(MINIMAL, "optim.loss={}")

    def test_constants_of_a_loss_that_is_not_chosen_are_named(self, caplog: pytest.LogCaptureFixture) -> None:
        constants = ("optim.dynamic.gamma=0.5", "optim.contrastive.temperature=0.1")
        load_text(MINIMAL, "optim.loss=dynamic", *constants)
        assert "accepted without effect: optim.contrastive.temperature (optim.loss has no contrastive)" in caplog.text
        assert "optim.dynamic.gamma" not in caplog.text

    @pytest.mark.parametrize(
        ("text", "overrides", "note"),
        [
            (MINIMAL, ["model.embed.glove=a"], "model.embed.glove (model.seq2vec.arch is skipthoughts)"),
            (
                MINIMAL,
                ["model.seq2vec.arch=gru", "model.seq2vec.dir_st=a", "model.embed.glove=a"],
                "model.seq2vec.dir_st (model.seq2vec.arch is gru)",
            ),
            (
                MINIMAL,
                ["optim.loss=contrastive", "optim.margin=0.1", "optim.max_violation=true"],
                "optim.margin (optim.loss has no triplet); optim.max_violation (optim.loss has no dynamic and "
                "no triplet)",
            ),
            (MINIMAL, ["optim.loss=dynamic", "optim.max_violation=true"], ""),
            (MINIMAL, ["optim.lr_backbone=0.1"], ""),
            (
                MINIMAL.replace("AMFMN", "SWAN"),
                ["optim.lr_backbone=0.1"],
                "optim.lr_backbone (model.is_finetune is false)",
            ),
            (MINIMAL.replace("AMFMN", "SWAN"), ["optim.lr_backbone=0.1", "model.is_finetune=true"], ""),
            (
                MINIMAL.replace("AMFMN", "CLIP"),
                ["optim.lr_backbone=0.1"],
                "optim.lr_backbone (CLIP's towers learn at optim.lr, model.image.lr and model.text.lr)",
            ),
        ],
    )
    def test_what_nothing_reads_is_named(
        self, text: str, overrides: list[str], note: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        load_text(text, *overrides)
        assert [message.rpartition("without effect: ")[2] for message in caplog.messages] == ([note] if note else [])

    @pytest.mark.parametrize(
        ("name", "overrides", "note"),
        [
            ("AID_RESNET50", ["optim.temperature=0.2"], "optim.temperature (optim.task is scenes)"),
            (
                "AID_RESNET50",
                ["optim.task=views", "optim.label_smoothing=0.2"],
                "optim.label_smoothing (optim.task is views)",
            ),
            ("TOY_MCRN_PRETRAIN", ["model.seq2vec.dir_st=words"], "model.seq2vec.dir_st (model.seq2vec.arch is gru)"),
        ],
    )
    def test_what_a_pretraining_does_not_read_is_named(
        self, name: str, overrides: list[str], note: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        option.load_pretraining_options(ALL[0].parent / f"{name}.yaml", overrides)
        assert [message.rpartition("without effect: ")[2] for message in caplog.messages] == [note]

    def test_what_an_override_puts_out_of_use_is_not_named(self, caplog: pytest.LogCaptureFixture) -> None:
        option.load_options(ROOT / "option" / "UCM_AMFMN.yaml", ["model.seq2vec.arch=gru"])
        assert caplog.messages == []
        option.load_options(ROOT / "option" / "UCM_AMFMN.yaml", ["model.seq2vec.arch=gru", "model.seq2vec.dir_st=x"])
        assert "model.seq2vec.dir_st (model.seq2vec.arch is gru)" in caplog.messages[0]

    def test_what_nothing_reads_in_a_file_is_named_whatever_is_overridden(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        load_text(MINIMAL.replace("AMFMN}", "AMFMN, seq2vec: {arch: gru, dir_st: a}}"), "optim.epochs=3")
        assert "model.seq2vec.dir_st (model.seq2vec.arch is gru)" in caplog.messages[0]

    def test_options_that_a_run_wrote_load_without_a_note(self, caplog: pytest.LogCaptureFixture) -> None:
        options = option.load_options(ROOT / "option" / "UCM_AMFMN.yaml", ["model.seq2vec.arch=gru"])
        assert load_text(option.to_yaml(options)) == options
        assert caplog.messages == []

    @pytest.mark.parametrize("root", [Options, BackboneOptions, ModalityOptions])
    def test_every_whole_number_has_a_bound(self, root: type[Parameters]) -> None:
        blocks = {name: field.annotation for name, field in root.model_fields.items() if name != "model"}
        fields = [item for name, block in blocks.items() for item in leaves(block, name).items()]  # type: ignore[arg-type]
        for name, registered in parameters.model_blocks().items():
            fields += leaves(registered.parameters, f"model of {name}").items()
        whole = {key: allowed(field) for key, field in fields if "an integer" in allowed(field)}
        assert len(whole) > 20
        assert [key for key, words in whole.items() if "at most" not in words] == []
        assert allowed(LastBlocks.model_fields["last"]) == "an integer, at least 1, at most 1000"

    def test_a_tilde_is_the_home_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        text = MINIMAL.replace("data/x_precomp", "~/sets/x").replace("AMFMN", "SWAN")
        options = load_text(text, "optim.resume=~/a.pth", "model.resnet_ckpt=~/b.pth", "dataset.image_path='~'")
        assert options.dataset.data_path == Path("/home/someone/sets/x")
        assert options.dataset.image_path == Path("/home/someone")
        assert options.optim.resume == Path("/home/someone/a.pth")
        assert value_of(options, "model.resnet_ckpt") == Path("/home/someone/b.pth")
        backbone = load_text(MINIMAL, "model.backbone.pretrained=~/c.pth")
        assert value_of(backbone, "model.backbone.pretrained") == "/home/someone/c.pth"

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_every_key_that_a_block_calls_unread_exists(self, path: Path) -> None:
        options = option.load_options(path)
        known = {key for name, block in options for key in leaves(type(block), name)}
        for block in blocks_of(options):
            assert block.without_effect().keys() <= known

    @pytest.mark.parametrize("name", ["AMFMN", "GaLR", "SWAN", "MCRN"])
    def test_sides_that_a_model_does_not_take(self, name: str) -> None:
        text = MINIMAL.replace("AMFMN", name).replace("vocab/x.json", "vocab/x.json, image_size: 240")
        with pytest.raises(
            InputError, match=rf"image_size: given 240; {name} takes multiples of 32.* choose 224 or 256"
        ):
            load_text(text)
        assert load_text(text.replace(name, "DualEncoder")).dataset.image_size == 240

    def test_an_empty_block_is_its_defaults(self) -> None:
        assert load_text(MINIMAL + "optim:\nlogs: {}\n") == load_text(MINIMAL)

    def test_the_rerank_starts_from_the_published_constants(self) -> None:
        rerank = load_text(MINIMAL).rerank
        assert (rerank.candidates, rerank.w1, rerank.w2) == (30, 0.30, 1.1)

    def test_options_are_immutable(self) -> None:
        options = load_text(MINIMAL)
        with pytest.raises(ValidationError, match="frozen"):
            options.optim.lr = 1.0

    def test_dump_is_plain_and_complete(self) -> None:
        tree = option.dump(load_text(MINIMAL))
        assert tree["dataset"]["data_path"] == "data/x_precomp"
        assert tree["dataset"]["image_path"] is None
        assert tree["model"]["cross_attention"]["att_type"] == "soft_att"
        assert tree["optim"].keys() == Optim.whole().model_fields.keys()

    def test_every_key_is_described(self) -> None:
        for name, block in BLOCKS.items():
            for key, field in leaves(block, name).items():
                assert field.description, key
                assert len(field.description) < 140, key


class TestFaults:
    @pytest.mark.parametrize(
        ("key", "written", "fault"),
        [
            ("optim.epochs", "ten", "optim.epochs: given 'ten'; allowed: an integer, at least 1, at most 1000000"),
            ("optim.epochs", "true", "optim.epochs: given 'true'; allowed: an integer, at least 1, at most 1000000"),
            ("optim.epochs", "2.5", "optim.epochs: given '2.5'; allowed: an integer, at least 1, at most 1000000"),
            ("optim.epochs", "", "optim.epochs: given nothing; allowed: an integer, at least 1, at most 1000000"),
            ("optim.lr", "[1]", "optim.lr: given ['1']; allowed: a number, above 0"),
            ("optim.lr", "{x: 1}", "optim.lr: given {'x': '1'}; allowed: a number, above 0"),
            ("optim.lr", ".nan", "optim.lr: given '.nan'; allowed: a number, above 0"),
            ("optim.lr", "inf", "optim.lr: given 'inf'; allowed: a number, above 0"),
            ("optim.lr", "2024-05-01", "optim.lr: given '2024-05-01'; allowed: a number, above 0"),
            ("optim.margin", "1:30", "optim.margin: given '1:30'; allowed: a number, at least 0, at most 2"),
            ("optim.amp", "bf61", "optim.amp: given 'bf61'; allowed: one of off, bf16, fp16; did you mean bf16?"),
            ("optim.amp", "on", "optim.amp: given 'on'; allowed: one of off, bf16, fp16"),
            ("optim.max_violation", "2", "optim.max_violation: given '2'; allowed: true or false"),
            (
                "optim.loss",
                "tripplet",
                "optim.loss: given 'tripplet'; allowed: one of affiliation, contrastive, dynamic, "
                "intra, sigmoid, soft_targets, triplet; or several of them with "
                "a number, above 0, each; did you mean triplet?",
            ),
            (
                "optim.loss",
                "{triplet: 0}",
                "optim.loss: given {'triplet': '0'}; allowed: one of affiliation, contrastive, dynamic, "
                "intra, sigmoid, soft_targets, triplet; or several of them "
                "with a number, above 0, each",
            ),
            ("optim.resume", "True", "optim.resume: given 'True'; allowed: false, or the path of a checkpoint"),
            ("dataset.image_path", "''", "dataset.image_path: given ''; a path must not be empty"),
            ("dataset.image_path", "[a]", "dataset.image_path: given ['a']; allowed: a path or null"),
            (
                "dataset.image_size",
                "250",
                "dataset.image_size: given 250; AMFMN takes multiples of 32, since its maps are halved 5 times and "
                "joined: choose 224 or 256",
            ),
            (
                "k_fold.strategy",
                "kfold",
                "k_fold.strategy: given 'kfold'; a partition needs k_fold.nums of at least 2; with 1 fold use random",
            ),
            ("optim.epoch", "3", "optim.epoch: unknown key, given '3'; did you mean optim.epochs?"),
            ("optim.batch_size", "3", "optim.batch_size: unknown key, given '3'; did you mean dataset.batch_size?"),
            (
                "model.att_type",
                "x",
                "model.att_type: unknown key, given 'x'; did you mean model.cross_attention.att_type?",
            ),
            (
                "model.fusion.mca_FFSIZE",
                "3",
                "model.fusion.mca_FFSIZE: unknown key, given '3'; did you mean model.fusion.mca_FF_SIZE?",
            ),
            (
                "logs.why",
                "red",
                "logs.why: unknown key, given 'red'; known there: eval_step, print_freq, save_minutes, "
                "ckpt_save_path, trackers, group, examples",
            ),
            (
                "colour",
                "red",
                "colour: unknown key, given 'red'; known there: model, dataset, optim, logs, k_fold, rerank",
            ),
            (
                "logs",
                "3",
                "logs: given '3'; allowed: a block of keys: logs.eval_step, logs.print_freq, logs.save_minutes, "
                "logs.ckpt_save_path, logs.trackers, logs.group, logs.examples",
            ),
            ("model.fusion", "3", "model.fusion: given '3'; allowed: a block of keys: none of this model"),
            (
                "dataset.batch_size",
                "99999999999999999999",
                "dataset.batch_size: given '99999999999999999999'; allowed: an integer, at least 2, at most 65536",
            ),
            (
                "k_fold.nums",
                "100000000",
                "k_fold.nums: given '100000000'; allowed: an integer, at least 1, at most 1000",
            ),
            ("model.seq2vec.dropout", "1", "model.seq2vec.dropout: given '1'; allowed: a number, at least 0, below 1"),
            ("model.name", "AMFM", "model.name: given 'AMFM'; allowed: one of NAMES; did you mean AMFMN?"),
            ("model.name", "[a]", "model.name: given ['a']; allowed: one of NAMES"),
        ],
    )
    def test_key_value_allowed_and_nearest(self, key: str, written: str, fault: str) -> None:
        fault = fault.replace("NAMES", ", ".join(sorted(registry.registered())))
        assert faults_of(with_line(key, written))[1:] == [fault]
        assert faults_of(MINIMAL, f"{key}={written}") == ["--set: 1 fault", fault]

    @pytest.mark.parametrize("name", ["a/b", "a\\b", ".", "..", "''", "'  '", "'a '", "x" * 201])
    def test_experiment_name_is_a_plain_folder_name(self, name: str) -> None:
        (_, fault) = faults_of(with_line("k_fold.experiment_name", name))
        assert fault.startswith("k_fold.experiment_name: given ")
        assert "allowed: a plain folder name" in fault

    def test_missing_keys_say_what_they_are_for(self) -> None:
        assert faults_of("optim: {epochs: 3}")[1:] == [
            f"model.name: missing; allowed: one of {', '.join(sorted(registry.registered()))}",
            "dataset.data_path: missing; needed: folder of the caption and file-name lists; or of several sets to "
            "train on, such as `[data/a, {path: data/b, weight: 2}]`: data/README.md (a path or a list, each a block "
            "of keys: path, weight, image_path)",
            "dataset.vocab_path: missing; needed: vocabulary JSON, made by `python -m vocab`; CLIP brings its own and "
            "reads none (a path)",
            "k_fold.experiment_name: missing; needed: name of the experiment's folder below logs.ckpt_save_path (text)",
        ]

    def test_all_faults_at_once_the_file_before_the_overrides(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(MINIMAL + "optim:\n  lr: fast\n  lr: 1\n  epchs: 3\n  epochs: !!python/name:os.system 0\n")
        with pytest.raises(InputError) as caught:
            option.load_options(
                path, ["lr", "=3", "optim.amp=[", "optim.lrr=1", "optim.seed=-1", "optim.margin=!!float 1"]
            )
        assert str(caught.value).split("\n") == [
            f"{path}: 5 faults",
            "  line 7: the key 'lr' is given twice, first on line 6",
            "  line 9: the tag !!python/name:os.system is not allowed: write plain text, numbers, lists or blocks",
            "  optim.epchs: unknown key, given '3'; did you mean optim.epochs?",
            "  optim.epochs: given '0'; allowed: an integer, at least 1, at most 1000000",
            "  optim.lr: given 'fast'; allowed: a number, above 0",
            "--set: 6 faults",
            "  'lr': expected key=value, such as optim.lr=1e-4",
            "  '=3': expected key=value, such as optim.lr=1e-4",
            "  optim.amp: not valid YAML at line 1, column 2: while parsing a flow node, "
            "expected the node content, but found '<stream end>'; put the value in quotes",
            "  optim.margin: line 1: the tag !!float is not allowed: write plain text, numbers, lists or blocks",
            "  optim.lrr: unknown key, given '1'; did you mean optim.lr?",
            "  optim.seed: given '-1'; allowed: an integer, at least 0, at most 2147483647",
        ]

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("", "the file is empty; expected blocks of keys such as `dataset:`"),
            ("# nothing\n", "the file is empty; expected blocks of keys such as `dataset:`"),
            ("- a\n", "the file holds ['a'] instead of keys; expected blocks of keys such as `dataset:`"),
            ("just text", "the file holds 'just text' instead of keys; expected blocks of keys such as `dataset:`"),
            ("a: [1\n", "not valid YAML at line 2, column 1: while parsing a flow sequence"),
            ("a:\n\tb: 1", "not valid YAML at line 2, column 1: while scanning for the next token"),
            ("a: &x 1\nb: *x", "not valid YAML at line 2, column 4: aliases (*name) are not supported"),
            ("a: &x [*x]", "not valid YAML at line 1, column 8: aliases (*name) are not supported"),
            ("[" * 10_000, "not valid YAML at line 1, column 21: blocks are nested deeper than 20 levels"),
            ("a: 1\n---\nb: 1", "not valid YAML at line 2, column 1: expected a single document in the stream"),
            ("a: 1\nb: \x01", "not valid YAML at line 2: the character U+0001 is not allowed"),
            (
                'a: "C:\\data"',
                "not valid YAML at line 1, column 8: while scanning a double-quoted scalar, found unknown escape "
                "character 'd'" + BACKSLASH,
            ),
            ('a: "\\UFFFFFFFF"', "not valid YAML: a number in an escape or a % line is out of range"),
            ('a: "\\U00110000"', "not valid YAML: a number in an escape or a % line is out of range"),
        ],
    )
    def test_a_file_that_cannot_be_read_as_blocks(self, text: str, fault: str) -> None:
        (line,) = faults_of(text)
        assert line.startswith(fault)

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("optim.lr: 3", "line 5: the key 'optim.lr' holds a dot: nest the blocks instead"),
            ("? [a]\n: 3", "line 5: a key must be a plain word"),
            ("'': 3", "line 5: a key must be a plain word"),
            (
                'optim: {resume: "a\\0b"}',
                "line 5: 'a\\x00b' holds a line break or another control character" + BACKSLASH,
            ),
            (
                'optim: {resume: "\\uD800"}',
                "line 5: '\\ud800' holds a line break or another control character" + BACKSLASH,
            ),
            (
                'optim: {resume: "C:\\new"}',
                "line 5: 'C:\\new' holds a line break or another control character" + BACKSLASH,
            ),
        ],
    )
    def test_what_keys_and_values_cannot_hold(self, line: str, fault: str) -> None:
        assert faults_of(MINIMAL + line)[1:] == [fault]

    def test_text_in_another_encoding(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_bytes(b"model:\n  name: \xff\n")
        with pytest.raises(InputError, match="line 2 is not UTF-8 text; save the file as UTF-8"):
            option.load_options(path)

    def test_a_missing_file_names_those_that_are_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "other.yaml").write_text(MINIMAL)
        (tmp_path / ".hidden.yaml").write_text("repos: []")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"^x\.yaml: no such file; there are other\.yaml$"):
            option.load_options("x.yaml")
        with pytest.raises(InputError, match=r"^no/x\.yaml: no such file; there are .*RSITMD_AMFMN\.yaml"):
            option.load_options("no/x.yaml")

    def test_hidden_files_are_not_offered_for_a_missing_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        assert list(ROOT.glob(".*.yaml"))
        with pytest.raises(InputError, match=r"no such file; there are option/AID_RESNET50\.yaml, .*UCM_SWAN\.yaml$"):
            option.load_options("nope.yaml")

    @pytest.mark.parametrize("path", [".", "a\0b", "x" * 5000])
    def test_a_path_that_is_no_file(self, path: str) -> None:
        with pytest.raises(InputError, match="can't be read"):
            option.load_options(path)


class DummyWeights(Parameters):
    global_: float | None = Field(default=None, alias="global", ge=0, description="weight of the image")
    depth: Literal["18", "50"] = Field(default="18", description="layers")


class DummyParameters(ModelParameters):
    name: Literal["Dummy"]
    global_local_weight: DummyWeights = DummyWeights()
    rates: list[float] = Field(default=[], description="one per layer")


@pytest.fixture
def _dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parameters._blocks, "Dummy", ModelBlock(DummyParameters, AMFMN.unread))


@pytest.mark.usefixtures("_dummy")
class TestAnyModel:
    def test_a_block_known_in_part_is_handled_key_by_key(self, caplog: pytest.LogCaptureFixture) -> None:
        text = MINIMAL.replace(
            "{name: AMFMN}", "{name: Dummy, global_local_weight: {global: 1e-1, local: 2}, rates: [1e-1, 2]}"
        )
        options = load_text(text)
        assert option.dump(options)["model"] == {
            "name": "Dummy",
            "global_local_weight": {"global": 0.1, "depth": "18"},
            "rates": [0.1, 2.0],
        }
        assert load_text(option.to_yaml(options)) == options
        assert [note.rpartition("without effect: ")[2] for note in caplog.messages] == [
            "model.global_local_weight.local (not part of Dummy)"
        ]

    def test_another_models_keys_lose_their_effect_with_the_model(self, caplog: pytest.LogCaptureFixture) -> None:
        options = load_text(PUBLISHED_AMFMN, "model.name=Dummy")
        assert options.model == DummyParameters(name="Dummy")
        assert "model.seq2vec.dir_st, " in caplog.messages[0]

    def test_faults_inside_lists_and_aliases(self) -> None:
        assert faults_of(MINIMAL, "model.name=Dummy", "model.rates=[1, x, y]", "model.global_local_weight.global=-1")[
            1:
        ] == [
            "model.global_local_weight.global: given '-1'; allowed: a number, at least 0 or null",
            "model.rates: given ['1', 'x', 'y']; allowed: a list",
        ]


yaml_characters = st.text(alphabet="{}[]:,&*!|>-?'\"\\%@`# \n\tabexnU01.~<=", max_size=60)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | yaml_characters
words = st.sampled_from(
    [*Options.model_fields, *Dataset.model_fields, *Optim.model_fields, *KFold.model_fields, "name", "AMFMN"]
)
trees = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)
known_keys = st.sampled_from([key for name, block in BLOCKS.items() for key in leaves(block, name)] + ["model.name"])


def loads_or_explains(text: str, *overrides: str) -> None:
    try:
        options = load_text(text, *overrides)
    except InputError:
        return
    assert load_text(option.to_yaml(options)) == options


class TestNothingButInputError:
    @settings(max_examples=200, deadline=None)
    @given(st.text() | yaml_characters)
    def test_any_text(self, text: str) -> None:
        loads_or_explains(text)

    @settings(max_examples=100, deadline=None)
    @given(st.binary())
    def test_any_bytes(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.yaml")
            path.write_bytes(content)
            with pytest.raises(InputError):
                option.load_options(path)

    @settings(max_examples=200, deadline=None)
    @given(st.dictionaries(words | st.text(max_size=8), trees, max_size=5))
    def test_any_tree(self, tree: dict[str, Any]) -> None:
        loads_or_explains(yaml.safe_dump(tree))

    @settings(max_examples=200, deadline=None)
    @given(known_keys, trees)
    def test_any_value_of_any_key(self, key: str, value: Any) -> None:
        for part in reversed(key.split(".")):
            value = {part: value}
        loads_or_explains(yaml.safe_dump(merge(yaml.safe_load(MINIMAL), value)))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.text() | st.builds("{}={}".format, known_keys, scalars | yaml_characters), max_size=3))
    def test_any_overrides(self, overrides: list[str]) -> None:
        loads_or_explains(MINIMAL, *overrides)


@pytest.mark.parametrize("train", ["som", "{lst: 2}", "{last: 0}"])
def test_a_key_that_takes_a_word_or_a_block_says_both(train: str) -> None:
    expected = r"model\.image\.train: .*allowed: one of none, all or a block of keys: last"
    with pytest.raises(InputError, match=expected):
        option.load_options("option/UCM_DUAL.yaml", [f"model.image.train={train}"])


def test_last_blocks_are_read_and_written_as_a_block() -> None:
    options = option.load_options("option/UCM_DUAL.yaml", ["model.image.train={last: 2}"])
    assert option.dump(options)["model"]["image"]["train"] == {"last": 2}
