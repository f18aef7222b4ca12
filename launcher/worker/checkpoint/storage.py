"""Storage of torch.distributed.checkpoint without pickle: raw tensor bytes and a JSON manifest.

DCP's own file format keeps its metadata as a pickle, which is executed on load; this is its extension point for others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from launcher.errors import LauncherError
from launcher.run.checkpoints import VERSION, rank_file, read_manifest, write_manifest
from launcher.worker.checkpoint.checksum import NAME as CHECKSUM
from launcher.worker.checkpoint.checksum import Checksum, read_into

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8)
}


@dataclass(frozen=True)
class Extent:
    """The location of the bytes of one piece of a tensor."""

    file: str
    offset: int
    length: int


class ManifestWriter(StorageWriter):
    """Writes one file a rank into `temporary`; the coordinator then adds the manifest and calls `commit`."""

    def __init__(self, temporary: Path, *, extra: Mapping[str, Any], commit: Callable[[Path], None]) -> None:
        self._folder, self._extra, self._commit = temporary, dict(extra), commit

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One writer, one checkpoint: nothing to forget."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan, planner) if plan.items else [])
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        name = rank_file(dist.get_rank() if dist.is_initialized() else 0)
        checksum, offset, written = Checksum(), 0, []
        with (self._folder / name).open("wb") as file:
            for item in plan.items:
                data = tensor_bytes(_as_tensor(planner.resolve_data(item), item.index.fqn))
                file.write(data)
                checksum.update(data)
                written.append((item.index, Extent(name, offset, data.nbytes)))
                offset += data.nbytes
            file.flush()
            os.fsync(file.fileno())
        recorded = {"name": name, "bytes": offset, CHECKSUM: checksum.hexdigest()}
        return [WriteResult(index, extent.length, (extent, recorded)) for index, extent in written]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, after every rank has written: the manifest, then the commit."""
        extents = {(r.index.fqn, r.index.offset): r.storage_data for rank in results for r in rank}
        tensors, files = {}, {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise LauncherError(f"checkpoints contain only tensors; {name} is not one")
            chunks = []
            for chunk in entry.chunks:
                extent, recorded = extents[name, _found_offset(extents, name, chunk.offsets)]
                files[recorded["name"]] = {"bytes": recorded["bytes"], CHECKSUM: recorded[CHECKSUM]}
                place = {"file": extent.file, "offset": extent.offset, "length": extent.length}
                chunks.append({"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **place})
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(entry.size), "chunks": chunks}
        write_manifest(self._folder, {"version": VERSION, "files": files, "tensors": tensors, **self._extra})
        self._commit(self._folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class ManifestReader(StorageReader):
    """Reads a checkpoint of ManifestWriter: only the bytes that this rank's part of each tensor needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, Any] = read_manifest(folder)["tensors"]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One reader, one checkpoint: nothing to forget."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        entries = {}
        for name, entry in self._tensors.items():
            chunks = [ChunkStorageMetadata(torch.Size(c["offsets"]), torch.Size(c["sizes"])) for c in entry["chunks"]]
            properties = TensorProperties(dtype=_DTYPES[entry["dtype"]])
            entries[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
        return Metadata(entries)  # type: ignore[arg-type]

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Everything is known from the manifest."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                raise LauncherError(f"checkpoints contain only tensors; {item.dest_index.fqn} is not one")
            target = planner.resolve_tensor(item).detach()
            self._load(item, target)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _load(self, item: ReadItem, target: Tensor) -> None:
        """Read part of a stored piece into its place, without a copy if it is the whole piece in the same order."""
        entry = self._tensors[item.storage_index.fqn]
        chunk, dtype = self._chunk(item.storage_index), _DTYPES[entry["dtype"]]
        whole = list(item.lengths) == chunk["sizes"]
        if whole and target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous():
            self._fill(target, chunk)
            return
        part = torch.empty(chunk["sizes"], dtype=dtype)
        self._fill(part, chunk)
        for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            part = part.narrow(dim, start, length)
        target.copy_(part)

    def _chunk(self, index: MetadataIndex) -> dict[str, Any]:
        """Return the location of a stored piece of a tensor."""
        entry = self._tensors[index.fqn]
        wanted = list(index.offset or [0] * len(entry["shape"]))
        found: dict[str, Any] = next(c for c in entry["chunks"] if c["offsets"] == wanted)
        return found

    def _fill(self, tensor: Tensor, chunk: Mapping[str, Any]) -> None:
        room = tensor_bytes(tensor)
        with (self._folder / chunk["file"]).open("rb", buffering=0) as file:
            file.seek(chunk["offset"])
            if read_into(file, room) != chunk["length"]:
                raise LauncherError(f"{self._folder / chunk['file']} was cut while it was read")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the elements of a tensor in row-major order, little-endian; no copy if the host has them so already."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _as_tensor(data: Any, name: str) -> Tensor:
    if not isinstance(data, Tensor):
        raise LauncherError(f"checkpoints contain only tensors; {name} is a {type(data).__name__}")
    return data


def _found_offset(extents: Mapping[tuple[str, Any], Any], name: str, offsets: torch.Size) -> Any:
    """Return a piece's key: DCP gives whole tensors no offset."""
    return offsets if (name, offsets) in extents else None
