"""GaLR against the released implementation inside and out, its blocks against slow twins, and its runs end to end.

Letters: B batch, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import test as test_entry
import train as train_entry
from batches.batch import Batch
from data.annotations import read_annotations
from data.regions.__main__ import main as regions_main
from data.regions.file import RegionFile, read_regions
from layers import build_model
from layers.base import l2norm
from layers.galr import Fusion, FusionParameters, GaLR, GalrParameters, RegionGraphEncoder
from layers.released import load_released
from layers.single_token import SingleTokenAttention, UnbiasedLayerNorm
from option import Options, load_options
from runs import media as media_module
from runs.loaders import evaluation_loader, read_vocabulary, train_loader
from runs.media import Media, regions_of
from tests import ROOT, reference_inputs
from tests.tiny import make_precomp, write_experiment
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")
TinyOptions = Callable[..., Options]


def galr(vocabulary: Vocabulary, dynamic_weights: str, regions: bool = True) -> GaLR:
    """A model of published size."""
    block = {"name": "GaLR", "fusion": {"dynamic_weights": dynamic_weights}}
    return GaLR.from_parameters(GalrParameters.model_validate(block), 256, vocabulary, False, regions).eval()


def close(given: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the greatest expected entry; the bound is 1e-4."""
    assert given.shape == expected.shape
    assert float((given - expected).abs().max() / expected.abs().max()) < 1e-5


class TestReleased:
    def test_intermediates_of_the_released_code(self, vocabulary: Vocabulary) -> None:
        model, expected, batch = galr(vocabulary, "paper"), reference_inputs.outputs("GaLR"), reference_inputs.batch()
        load_released(model, reference_inputs.released_state("GaLR"))
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: seen.update({name: output})

        places = {
            "solo_feature": "image_encoder.solo",
            "local_feature": "regions",
            "g2g_SA": "fusion.global_self",
            "l2l_SA": "fusion.local_self",
            "g2l_SGA": "fusion.local_guided",
            "l2g_SGA": "fusion.global_guided",
            "logits": "fusion.weighting",
        }
        for name, place in places.items():
            model.get_submodule(place).register_forward_hook(keep(name))
        with torch.inference_mode():
            close(l2norm(model.image_encoder(batch.need("images"))), expected["global_feature"])
            paper = model.encode_image(batch)
        weights = seen.pop("logits").softmax(dim=-1)
        close(weights, expected["dynamic_weight"])
        for name, value in seen.items():
            close(value, expected[name].squeeze(1))
        gated = torch.sigmoid(seen["g2l_SGA"]) * seen["l2g_SGA"]
        summed = seen["l2g_SGA"] + seen["g2l_SGA"]
        close(weights[:, :1] * (gated + summed), expected["visual_feature"])
        close(paper, weights[:, :1] * gated + weights[:, 1:] * summed)

    def test_the_unbuilt_weighting_is_a_factor_that_the_cosine_cancels(self, vocabulary: Vocabulary) -> None:
        model, expected, batch = (
            galr(vocabulary, "released"),
            reference_inputs.outputs("GaLR"),
            reference_inputs.batch(),
        )
        load_released(model, reference_inputs.released_state("GaLR"))
        with torch.inference_mode():
            images, texts = model.encode_image(batch), model.encode_text(batch)
            close(images * expected["dynamic_weight"][:, :1], expected["visual_feature"])
            close(texts, expected["text_feature"])
            torch.testing.assert_close(model.score(images, texts), expected["sims"], atol=1e-6, rtol=0)

    def test_dead_parameters_are_not_built(self, vocabulary: Vocabulary) -> None:
        state = reference_inputs.released_state("GaLR")
        stored = sum(value.numel() for value in state.values())
        queries_and_keys, classifier, weighting = 6 * 2 * (512 * 512 + 512), 513_000, 512 * 513 + 2 * 513
        for mode, dead in (("paper", 0), ("released", weighting)):
            built = sum(value.numel() for value in galr(vocabulary, mode).state_dict().values())
            assert stored - built == queries_and_keys + classifier + dead

    def test_a_released_checkpoint_needs_regions(self, vocabulary: Vocabulary) -> None:
        with pytest.raises(InputError, match=r"unexpected +69  regions\."):
            load_released(galr(vocabulary, "released", regions=False), reference_inputs.released_state("GaLR"))


class TestBlocks:
    def test_attention_to_one_token_needs_no_query_and_no_key(self) -> None:
        torch.manual_seed(0)
        full = nn.MultiheadAttention(16, 4, batch_first=True)
        short = SingleTokenAttention(16, 4, dropout=0.0)
        _, _, value = full.in_proj_weight.chunk(3)
        _, _, bias = torch.randn(48).chunk(3)
        with torch.no_grad():
            full.in_proj_bias[32:] = bias
            short.value.weight.copy_(value)
            short.value.bias.copy_(bias)
            short.merge.load_state_dict(full.out_proj.state_dict())
        query, token = torch.randn(5, 1, 16), torch.randn(5, 1, 16)
        expected, weights = full(query, token, token)
        assert torch.equal(weights, torch.ones(5, 1, 1))
        torch.testing.assert_close(short(token[:, 0]), expected[:, 0], atol=1e-6, rtol=0)

    def test_attention_dropout_leaves_out_whole_heads(self) -> None:
        torch.manual_seed(0)
        attention = SingleTokenAttention(8, 4, dropout=0.5)
        with torch.no_grad():
            attention.merge.weight.copy_(torch.eye(8))
            attention.merge.bias.zero_()
        token = torch.randn(400, 8)
        ratio = (attention(token) / attention.value(token)).unflatten(1, (4, 2))
        torch.testing.assert_close(ratio[..., 0], ratio[..., 1])
        kept = ratio[..., 0] > 1
        torch.testing.assert_close(ratio[..., 0], 2.0 * kept)
        assert 0.45 < kept.float().mean() < 0.55

    def test_layer_norm_by_hand(self) -> None:
        norm = UnbiasedLayerNorm(3)
        with torch.no_grad():
            norm.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
            norm.shift.copy_(torch.tensor([0.0, 0.0, 1.0]))
        # mean 3, unbiased deviation 2
        torch.testing.assert_close(norm(torch.tensor([[1.0, 3.0, 5.0]])), torch.tensor([[-1.0, 0.0, 4.0]]))
        assert norm(torch.ones(1, 3)).tolist() == [[0.0, 0.0, 1.0]]

    def test_region_graph_node_by_node(self) -> None:
        torch.manual_seed(0)
        encoder = RegionGraphEncoder(8)
        nodes, adjacency = torch.randn(2, 20, 20), torch.rand(2, 20, 20)
        for item in range(2):
            rows = list(nodes[item])
            for layer in encoder.layers:
                weight = layer.get_parameter("weight")
                mixed = [sum(adjacency[item, i, j] * rows[j] for j in range(20)) for i in range(20)]
                rows = [torch.relu(weight @ row) for row in mixed if isinstance(row, Tensor)]
            expected = F.normalize(encoder.projection(torch.cat(rows)), dim=0)
            torch.testing.assert_close(encoder(nodes, adjacency)[item], expected, atol=1e-6, rtol=1e-5)

    def test_equal_dynamic_weights_score_as_released(self) -> None:
        torch.manual_seed(0)
        sizes = {"mca_HIDDEN_SIZE": 16, "mca_FF_SIZE": 32, "mca_MULTI_HEAD": 2, "mca_HIDDEN_SIZE_HEAD": 8}
        paper, released = (
            Fusion(FusionParameters.model_validate({"dynamic_weights": mode, **sizes})).eval()
            for mode in ("paper", "released")
        )
        assert paper.weighting is not None
        last = paper.weighting.get_submodule("3")
        released.load_state_dict({name: v for name, v in paper.state_dict().items() if "weighting" not in name})
        vectors = torch.randn(4, 16), torch.randn(4, 16)
        assert not torch.allclose(F.normalize(paper(*vectors)), F.normalize(released(*vectors)), atol=1e-4)
        with torch.no_grad():
            last.get_parameter("weight").zero_()
            last.get_parameter("bias").zero_()
        torch.testing.assert_close(2 * paper(*vectors), released(*vectors))

    def test_widths_that_do_not_agree_are_refused(self, tmp_path: Path) -> None:
        path = write_galr(tmp_path, make_precomp(tmp_path / "data", 12, 4), None)
        with pytest.raises(InputError, match=r"mca_HIDDEN_SIZE \(512\), embed\.embed_dim \(32\)"):
            load_options(path, ["model.fusion.mca_HIDDEN_SIZE=512"])


def write_galr(folder: Path, data: Path, regions: Path | None) -> Path:
    """The experiment of `tests.tiny` with a small GaLR."""
    path = write_experiment(folder, data)
    content = yaml.safe_load(path.read_text())
    content["model"] |= {
        "name": "GaLR",
        "fusion": {"mca_HIDDEN_SIZE": 32, "mca_FF_SIZE": 16, "mca_MULTI_HEAD": 2, "mca_HIDDEN_SIZE_HEAD": 16},
    }
    content["dataset"]["local_path"] = None if regions is None else str(regions)
    content["k_fold"]["nums"] = 1
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML of a small GaLR, its images' regions built."""
    folder = tmp_path_factory.mktemp("galr")
    data = make_precomp(folder / "data")
    regions = folder / "regions.h5"
    regions_main(["build", "--images", str(data / "images"), "--out", str(regions), "--workers", "1"])
    return write_galr(folder, data, regions)


class TestRuns:
    def test_trains_and_tests_with_regions(self, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
        train_entry.main(["--path_opt", str(experiment)])
        test_entry.main(["--path_opt", str(experiment)])
        folder = experiment.parent / "checkpoint" / "tiny"
        assert (folder / "0" / "GaLR_best.pth.tar").is_file()
        assert "global only" not in capsys.readouterr().out
        stored = torch.load(folder / "0" / "GaLR_best.pth.tar", weights_only=True)["model"]
        assert stored["regions.projection.weight"].shape == (32, 400)

    def test_global_only_says_so_in_the_table(
        self, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_galr(tmp_path, experiment.parent / "data", None)
        train_entry.main(["--path_opt", str(path)])
        test_entry.main(["--path_opt", str(path)])
        assert "global only (no dataset.local_path)" in capsys.readouterr().out
        result = json.loads((tmp_path / "checkpoint" / "tiny" / "test.json").read_text())
        assert "global only" in result["protocol"]
        regions = f"dataset.local_path={experiment.parent / 'regions.h5'}"
        with pytest.raises(InputError, match=r"does not fit GaLR(.|\n)*dataset.local_path: None in the checkpoint"):
            test_entry.main(["--path_opt", str(path), "--set", regions])

    def test_each_image_comes_with_its_own_regions(self, experiment: Path) -> None:
        options = load_options(experiment)
        annotations = read_annotations(options.dataset.folder, "train")
        media = Media.of(options, [annotations], CPU)
        vocabulary = read_vocabulary(options)
        training = train_loader(options, 0, vocabulary, annotations, media, CPU)
        evaluation = evaluation_loader(options, annotations, vocabulary, media, CPU)
        assert options.dataset.local_path is not None
        file = read_regions(options.dataset.local_path)
        seen = 0
        for batches in (training.epoch(0), evaluation.image_batches()):
            for batch in batches:
                for row, image in enumerate(batch.need("image_ids").tolist()):
                    at = file.row[annotations.image_names[image].removesuffix(".png")]
                    assert torch.equal(batch.need("nodes")[row], torch.from_numpy(file.nodes[at]))
                    assert torch.equal(batch.need("adjacency")[row], torch.from_numpy(file.adjacency[at]))
                    seen += 1
        assert seen == 3 * len(annotations.image_names)

    def test_the_region_file_is_read_once_for_all_loaders(
        self, experiment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[Path] = []

        def noted(path: Path) -> RegionFile:
            read.append(path)
            return read_regions(path)

        monkeypatch.setattr(media_module, "read_regions", noted)
        options = load_options(experiment)
        annotations, vocabulary = read_annotations(options.dataset.folder, "train"), read_vocabulary(options)
        media = Media.of(options, [annotations], CPU)
        for fold in range(2):
            train_loader(options, fold, vocabulary, annotations, media, CPU)
            evaluation_loader(options, annotations, vocabulary, media, CPU)
        assert read == [options.dataset.local_path]

    def test_a_model_without_regions_reads_none_and_says_so(
        self, experiment: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_experiment(experiment.parent, experiment.parent / "data").rename(experiment.parent / "other.yaml")
        options = load_options(path, ["dataset.local_path=absent.h5"])
        assert "dataset.local_path (AMFMN has no regions)" in caplog.text
        assert regions_of(options, ["a.png"]) is None

    def test_global_only_is_the_normalised_global_vector(
        self, tiny_options: TinyOptions, vocabulary: Vocabulary
    ) -> None:
        model = build_model(tiny_options("GaLR", {"dataset.local_path": None}), vocabulary).eval()
        assert isinstance(model, GaLR)
        assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"image_encoder", "caption_encoder"}
        batch = Batch(images=torch.randn(3, 3, 64, 64))
        with torch.inference_mode():
            images = model.encode_image(batch)
            close(images, F.normalize(model.image_encoder(batch.need("images"))))


@pytest.mark.parametrize("name", ["RSITMD", "RSICD", "UCM"])
def test_published_training_values(name: str) -> None:
    options = load_options(ROOT / "option" / f"{name}_GALR.yaml")
    assert (options.optim.epochs, options.optim.lr, options.optim.margin, options.k_fold.nums) == (20, 2e-4, 0.2, 3)
    assert options.model == GalrParameters.model_validate(
        {"name": "GaLR", "seq2vec": {"dir_st": "vocab/seq2vec"}, "embed": {"embed_dim": 512}}
    )
    assert options.dataset.local_path == Path(f"data/{name.lower()}_regions.h5")
