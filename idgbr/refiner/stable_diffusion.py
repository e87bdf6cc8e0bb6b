"""Parts from local folders in diffusers layout: the U-Net and autoencoder of Stable Diffusion 1.5 and its like.
Nothing is fetched.

<base>/unet/{config.json,diffusion_pytorch_model.safetensors}     denoiser, and the frozen condition encoder (a second copy)
<base>/vae/...                                                    label code, unless `refiner.vae` names another
<base>/text_encoder/{config.json,model.safetensors}               read once, for the embedding of the empty prompt
<base>/empty_prompt.safetensors                                   that embedding [1,N,E], if there is no text encoder
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from idgbr.config import RefinerConfig
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.interfaces import Json
from idgbr.weights import header

RENAMED = 0.9  # older folders call the few tensors of the autoencoder's attention otherwise; diffusers renames them when it loads
START, END = 49406, 49407  # CLIP's tokens around every prompt; the end token also pads


@dataclass(frozen=True)
class Parts:
    """Modules read from folders; None where the small U-Net and the analog code are used."""

    vae: Any = None
    unet: Any = None
    condition_unet: Any = None
    prompt: Tensor | None = None

    @classmethod
    def read(cls, config: RefinerConfig) -> Parts:
        """What `config.base` and `config.vae` name, with weights.

        Raises:
            Missing: no such folder, no weights in it. BadRequest: `codec=vae` without a folder, `base` with the
                analog code.
        """
        base = Path(config.base) if config.base else None
        if base and config.codec != "vae":
            raise BadRequest(
                "a refiner built from a Stable Diffusion folder writes VAE latents",
                value=f"refiner.codec={config.codec}",
                allowed="refiner.codec=vae",
            )
        vae_folder = Path(config.vae) if config.vae else base / "vae" if base else None
        if config.codec == "vae" and vae_folder is None:
            raise BadRequest(
                "refiner.codec=vae needs an autoencoder", hint="refiner.vae=FOLDER (diffusers AutoencoderKL or AutoencoderTiny)"
            )
        vae = read_module(vae_folder) if config.codec == "vae" and vae_folder else None
        if base is None:
            return cls(vae)
        return cls(vae, read_module(base / "unet"), read_module(base / "unet"), empty_prompt(base))

    def configs(self) -> Json:
        """JSON from which `from_configs` builds the same modules without weights."""
        made: Json = {}
        for name in ("vae", "unet"):
            module = getattr(self, name)
            if module is not None:
                # entries that begin with _ name the class, its version and the folder read; paths do not belong in
                # artefacts
                made[name] = {
                    "class": type(module).__name__,
                    "config": {k: v for k, v in json.loads(module.to_json_string()).items() if not k.startswith("_")},
                }
        if self.prompt is not None:
            made["prompt"] = list(self.prompt.shape)
        return made

    @classmethod
    def from_configs(cls, configs: Json) -> Parts:
        """The parts with random weights, built as a saved refiner's config.json says."""

        def make(name: str) -> Any:
            return _class(configs[name]["class"]).from_config(configs[name]["config"]) if name in configs else None

        return cls(make("vae"), make("unet"), make("unet"), torch.zeros(configs["prompt"]) if "prompt" in configs else None)


def read_module(folder: Path) -> Any:
    """A diffusers model from its folder, float32. Where torch's default device is meta (`plan`), its shape alone: no
    tensor is read.

    Raises:
        Missing: no config or no weights. BadRequest: not a U-Net or autoencoder that can be used. Disagreement:
            weights of another model.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise Missing(
            f"no diffusers model in {folder}",
            allowed="a folder with config.json and *.safetensors",
            hint="refiner.base=FOLDER with vae/ and unet/ in it; an autoencoder of another place: refiner.vae=FOLDER",
        )
    if not any(folder.glob("*.safetensors")):
        raise Missing(
            f"no weights in {folder}",
            allowed="diffusion_pytorch_model.safetensors beside config.json",
            hint="convert .bin or .ckpt weights to safetensors",
        )
    kind = json.loads(config.read_text()).get("_class_name", "")
    if torch.get_default_device().type == "meta":
        return _shape_of(folder, kind)
    try:
        return _class(kind).from_pretrained(str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise Missing(f"the model in {folder} cannot be read: {error}") from error


def _shape_of(folder: Path, kind: str) -> Any:
    module = _class(kind).from_config(json.loads((folder / "config.json").read_text()))
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= header(path)
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    right = sum(found.get(name) == shape for name, shape in wanted.items())
    if right < RENAMED * len(wanted):
        raise Disagreement(
            f"the weights in {folder} are of another model than its config.json",
            value=f"{right} of {len(wanted)} tensors are in the file with that shape",
            hint="both files of one model",
        )
    return module


def _class(name: str) -> Any:
    import diffusers

    allowed = ("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny")
    if name not in allowed:
        raise BadRequest(
            "a model of a class that cannot be used", value=name or "no _class_name in config.json", allowed=", ".join(allowed)
        )
    return getattr(diffusers, name)


def empty_prompt(base: Path) -> Tensor:
    """Embedding [1,N,E] of the empty prompt: stored, or computed from the folder's CLIP text encoder.

    Raises:
        Missing: neither is there.
    """
    from safetensors.torch import load_file

    stored = base / "empty_prompt.safetensors"
    on_meta = torch.get_default_device().type == "meta"
    if stored.is_file():
        if on_meta:
            return torch.zeros(next(iter(header(stored).values())))
        return next(iter(load_file(str(stored)).values())).float()
    weights = sorted((base / "text_encoder").glob("*.safetensors"))
    if not weights or not (base / "text_encoder" / "config.json").is_file():
        raise Missing(
            f"no embedding of the empty prompt in {base}",
            allowed="empty_prompt.safetensors, or text_encoder/ with safetensors weights",
            hint="copy the text_encoder folder of the same model",
        )
    config = json.loads((base / "text_encoder" / "config.json").read_text())
    if on_meta:
        return torch.zeros(1, config["max_position_embeddings"], config["hidden_size"])
    return clip_empty_prompt(load_file(str(weights[0])), config)


def clip_empty_prompt(weights: dict[str, Tensor], config: Json) -> Tensor:
    """CLIP's text transformer (arXiv 2103.00020: pre-norm, causal) on the empty prompt: start token, then end tokens.
    Last hidden state.

    Written out because it runs once, on one constant input, which does not justify a dependency on the library that
    holds the full model.
    """
    w = {k.removeprefix("text_model."): v.float() for k, v in weights.items()}
    length, heads, epsilon = config["max_position_embeddings"], config["num_attention_heads"], config.get("layer_norm_eps", 1e-5)
    act = (lambda x: x * torch.sigmoid(1.702 * x)) if config.get("hidden_act", "quick_gelu") == "quick_gelu" else F.gelu

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    vocabulary = w["embeddings.token_embedding.weight"]
    start, end = min(START, len(vocabulary) - 2), min(END, len(vocabulary) - 1)
    x = (vocabulary[torch.tensor([start] + [end] * (length - 1))] + w["embeddings.position_embedding.weight"][:length])[None]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        y = norm(x, f"{layer}.layer_norm1")
        q, k, v = (linear(y, f"{layer}.self_attn.{n}_proj").unflatten(2, (heads, -1)).transpose(1, 2) for n in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(y, f"{layer}.self_attn.out_proj")
        x = x + linear(act(linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
    return norm(x, "final_layer_norm")
