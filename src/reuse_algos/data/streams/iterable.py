"""Ids and views for any iterable of samples: WebDataset, Hugging Face's iterable datasets, generators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from reuse_algos.data.streams.ids import key_of_id
from reuse_algos.data.streams.streaming import seeded_view
from reuse_algos.data.views import EpochCell, ViewPolicy
from reuse_algos.errors import ExampleIdError


def webdataset_id(sample: Mapping[str, Any]) -> str:
    """Return the id of a WebDataset sample: the name of its shard, without folders, and its key in it.

    >>> webdataset_id({"__url__": "/data/train-0001.tar", "__key__": "cat/7"})
    'train-0001.tar/cat/7'
    """
    return f"{str(sample['__url__']).rpartition('/')[2]}/{sample['__key__']}"


class IdStream(IterableDataset[dict[str, Any]]):
    """A stream whose samples hold their ``id`` (int64) and ``view``.

    The source shares its samples among workers and ranks itself (``split_by_worker`` and ``split_by_node`` of
    WebDataset, ``split_dataset_by_node`` of Hugging Face). In mid-epoch a Trainer resumes by reading up to where it
    was, which is exact where the source's order is a function of the epoch. The view of a sample is a function of its
    id and the number of times that the stream was seen.

    Args:
        source: An iterable of mappings. Its ``set_epoch``, if it has one, is called with the epoch.
        key: Name of the field with the id, or a function of the sample. Ids are whole numbers or texts. Default:
            ``__url__`` and ``__key__``, as WebDataset gives them.
        policy: The views. Default: one, for samples that are not augmented.
        augment: Sample -> sample, run with seeded global generators in each view. Default: None.
        keep: Fields to keep. Default: all but those that begin with ``__``.

    Attributes:
        info: What the examples are, where :func:`~reuse_algos.data.streams.scan_stream` has looked; else None.
    """

    def __init__(
        self,
        source: Iterable[Mapping[str, Any]],
        key: str | Callable[[Mapping[str, Any]], Any] = webdataset_id,
        *,
        policy: ViewPolicy | None = None,
        augment: Callable[[Any], Any] | None = None,
        keep: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.key, self.augment = source, key, augment
        self.view_policy = policy or ViewPolicy(0, 1, "none")
        self.keep = None if keep is None else frozenset(keep)
        self.info: Any = None
        self._epoch = EpochCell()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that comes next; running workers see it, too."""
        self._epoch.set(epoch)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        view = self.view_policy.view_of_epoch(self._epoch.value or 0)
        for sample in self.source:
            kept = {name: value for name, value in sample.items() if self._keeps(name)}
            yield seeded_view(kept, self._id(sample), view, self.view_policy.seed, self.augment)

    def _keeps(self, name: str) -> bool:
        return not name.startswith("__") if self.keep is None else name in self.keep

    def _id(self, sample: Mapping[str, Any]) -> int:
        try:
            return key_of_id(self.key(sample) if callable(self.key) else sample[self.key])
        except KeyError as error:
            raise ExampleIdError(
                f"a sample of the stream has no {error}, from which its id is made; it has {', '.join(sample)}. Say "
                "where the id is: IdStream(source, key=...)."
            ) from error
