"""The lists among a node's keys: one entry for each GPU, or for each NIC."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.errors import InputError

_NIC_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}(:[0-9]{1,3})?")
_LABEL = re.compile(r"(?:NIC|HCA-?)[0-9]{1,4}")  # of `nvidia-smi topo -m` and of subnet managers: no kernel's name
_INTERFACE = re.compile(r"(?:eth[0-9]|en[opsx][0-9a-f]|ib[0-9]|bond[0-9]).{0,15}")


def are_devices(names: Sequence[str]) -> bool:
    """Whether these can be the kernel's names of RDMA devices, each once: no bus ids, no labels, no interfaces."""
    plain = all(_NIC_NAME.fullmatch(name) and not _LABEL.fullmatch(name) for name in names)
    return plain and len({*names}) == len(names) and not any(map(is_interface, names))


def is_interface(name: str) -> bool:
    """Whether this is how the kernel and systemd call network interfaces."""
    return _INTERFACE.fullmatch(name) is not None


def of_each_gpu(name: str, given: tuple[int, ...] | None, num_gpus: int) -> tuple[int, ...] | None:
    """One number for each GPU; those of GPUs that the node lacks fall away."""
    if given is not None and len(given) < num_gpus:
        raise InputError(
            f"cluster.node.{name} says it of {len(given)} GPUs, and a node has {num_gpus}: name one for each, or set "
            "it to null"
        )
    return given[:num_gpus] if given else None


def check_nics(of_gpu: tuple[int, ...] | None, names: tuple[str, ...] | None, *, num_nics: int) -> None:
    """Raise InputError for NICs that the node lacks, and for names that are too few or too many, or are none."""
    if of_gpu and max(of_gpu) >= num_nics:
        raise InputError(
            f"cluster.node.nic_of_gpu={list(of_gpu)} names NIC {max(of_gpu)}, and a node "
            f"has {num_nics} (0 to {num_nics - 1}): change it, or set it to null"
        )
    if not names:
        return
    found = f"cluster.node.nic_names={list(names)}"
    if len({*names}) < len(names) or len(names) != num_nics:
        raise InputError(f"{found} names {len({*names})} NICs, and a node has {num_nics}: name each once, or set null")
    if wrong := [name for name in names if not _NIC_NAME.fullmatch(name)]:
        raise InputError(f"{found}: {wrong[0]!r} is no RDMA device: `ibstat -l` lists them, as mlx5_0 or mlx5_0:1")


def domains_of(given: Sequence[Sequence[int]] | None, *, num_gpus: int, size: int) -> tuple[tuple[int, ...], ...]:
    """NVSwitch domains; of lists, GPUs that the node lacks fall away."""
    if given is None:
        if num_gpus % size:
            raise InputError(
                f"cluster.node.domain_size={size} does not divide the {num_gpus} GPUs of a node: choose a divisor, "
                "auto for one domain of all, or list unequal ones in cluster.node.domains"
            )
        return tuple(tuple(range(i, min(i + size, num_gpus))) for i in range(0, num_gpus, size))
    members = sorted(gpu for domain in given for gpu in domain)
    if members != list(range(len(members))) or len(members) < num_gpus:
        raise InputError(
            f"cluster.node.domains={[list(domain) for domain in given]} must name each of the {num_gpus} GPUs "
            f"(0 to {num_gpus - 1}) once"
        )
    clipped = (tuple(gpu for gpu in domain if gpu < num_gpus) for domain in given)
    return tuple(domain for domain in clipped if domain)
