"""Finds the entry of configs/gpu for a card, by the names and PCI ids that tools print."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cluster.mig_profiles import profiles_of
from launcher.resources import resource
from launcher.text import printable

# Entry → product names as nvidia-smi prints them (older drivers without "NVIDIA "), words of `lspci`, and PCI device
# ids of vendor 10de: https://pci-ids.ucw.cz/read/PC/10de
CARDS: dict[str, tuple[str, ...]] = {
    "a100_sxm_80g": ("A100-SXM4-80GB", "A100-SXM-80GB", "A100 SXM4 80GB", "20b2"),
    "a100_sxm_40g": ("A100-SXM4-40GB", "A100-SXM-40GB", "A100 SXM4 40GB", "20b0"),
    "a100_sxm_64g": ("A100-SXM-64GB", "A100-SXM4-64GB", "A100 SXM 64GB", "20b3"),
    "a100_pcie_80g": ("A100 80GB PCIe", "A100-PCIE-80GB", "A100 PCIe 80GB", "20b5"),
    "a100_pcie_40g": ("A100-PCIE-40GB", "A100 PCIe 40GB", "20f1", "20b1"),
    "a800_sxm_80g": ("A800-SXM4-80GB", "A800 SXM4 80GB", "20f3"),
    "a800_sxm_40g": ("A800-SXM4-40GB", "A800 SXM4 40GB", "20bd"),
    "a800_pcie_80g": ("A800 80GB PCIe", "A800 PCIe 80GB", "20f5"),
    "a30": ("A30", "A30 PCIe", "20b7"),
    "a10": ("A10", "2236"),
    "a10g": ("A10G", "2237"),
    "l40s": ("L40S", "26b9"),
    "l40": ("L40", "26b5"),
    "l4": ("L4", "27b8"),
    "h100_sxm": ("H100 80GB HBM3", "H100 SXM5 80GB", "2330"),
    "h100_pcie": ("H100 PCIe", "2331"),
    "h100_nvl": ("H100 NVL", "H100L 94GB", "2321"),
    "h800_sxm": ("H800", "H800 SXM5", "2324"),
    "h200_sxm": ("H200", "H200 SXM 141GB", "2335"),
    "v100_sxm_32g": ("Tesla V100-SXM2-32GB", "V100-SXM2-32GB", "Tesla V100 SXM2 32GB", "1db5"),
    "gh200": ("GH200 480GB", "GH200 120GB", "GH200 120GB / 480GB", "2342"),
    "b200_sxm": ("B200", "2901"),
    "gb200": ("GB200", "2941"),
}
SLICES = {("a100_sxm_80g", "1g.10gb"): "a100_mig_1g", ("a100_sxm_80g", "3g.40gb"): "a100_mig_3g"}
_BY_WORD = {word.lower(): entry for entry, words in CARDS.items() for word in words}


@dataclass(frozen=True)
class Card:
    """A GPU as a tool names it. `entry`: of configs/gpu; None where no entry describes it, or the name is not known."""

    name: str
    entry: str | None


def card_of(name: str = "", device_id: str = "", memory_mib: int = 0) -> Card:
    """The card of a product name (`NVIDIA A100-SXM4-80GB`, `GA100 [A100 SXM4 80GB]`) or of a PCI id (`10de:20b2`). Of a
    name that a table cut (`NVIDIA A100-SXM...`), that with this memory.
    """
    product = name.removeprefix("NVIDIA Corporation ").removeprefix("NVIDIA ").strip()
    inside = product[product.find("[") + 1 : product.find("]")] if "[" in product and "]" in product else product
    words = (device_id.lower().removeprefix("10de:"), product.lower(), inside.lower())
    entry = next((_BY_WORD[word] for word in words if word in _BY_WORD), None)
    if entry is None and product.endswith("...") and memory_mib:
        start, size = product.lower().removesuffix("..."), f"{round(memory_mib / 1024)}gb"
        fits = {found for word, found in _BY_WORD.items() if word.startswith(start) and size in word}
        entry = fits.pop() if len(fits) == 1 else None
    known = entry is not None and (resource("configs") / "gpu" / f"{entry}.yaml").exists()
    return Card(printable(product or device_id), entry if known else None)


def slice_entry(card: Card, profile: str) -> tuple[str | None, str | None]:
    """The entry of configs/gpu for a MIG slice of a card, and the value of its key mig_slice, where it is the entry of
    the whole GPU.
    """
    if own := SLICES.get((card.entry or "", profile)):
        return own, None
    known = card.entry and any(each.name == profile for each in profiles_of(card.entry))
    return (card.entry, profile) if known else (None, None)
