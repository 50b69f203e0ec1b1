"""What a Transformer is made of, as numbers and words; free of torch, so that a mistake is found before its import."""

import math
from dataclasses import dataclass, fields

from lit_tfm.errors import UserError, nearest

WORDS = {
    "norm": ("rms", "layer"),
    "norm_position": ("pre", "post", "rezero"),
    "activation": ("gelu", "gelu_tanh", "relu", "relu2", "silu"),
    "positions": ("none", "sinusoidal", "learned", "rotary", "alibi", "t5"),
    "packed_attention": ("dense", "flex"),
}
COMPILE = (False, True, "reduce-overhead", "max-autotune")
WHOLE = (
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "n_decoder_layers", "max_length"),
    *("n_segments", "position_buckets", "position_max_distance", "neighbours"),
)


@dataclass(frozen=True)
class TransformerConfig:
    """The defaults are the recipe that learns fastest at small size: pre-norm, RMS norm without gains, rotary
    positions, QK-norm, squared ReLU, residual projections and the untied head started at zero, logits capped at 15.

    None means "derived", and is replaced by the number: afterwards `n_kv_heads`, `head_dim`, `d_ff` and
    `n_decoder_layers` are whole numbers.
    """

    vocab_size: int
    d_model: int = 512
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int | None = None  # grouped queries; None: n_heads
    head_dim: int | None = None  # None: d_model / n_heads
    d_ff: int | None = None  # None: 4 d_model, or 8/3 d_model up to a multiple of 64 when gated: as many weights
    n_decoder_layers: int | None = None  # encoder-decoder only; None: n_layers
    max_length: int = 512  # tokens
    n_segments: int = 0  # encoder only: BERT's "token types", 0 for none
    positions: str = "rotary"  # none | sinusoidal | learned | rotary | alibi | t5
    rotary_base: float = 10_000.0
    position_buckets: int = 32  # t5
    position_max_distance: int = 128  # t5: farther tokens share the last bucket
    norm: str = "rms"  # rms | layer
    norm_weight: bool = False  # learned gains, and shifts when `bias` and layer norm
    norm_position: str = "pre"  # pre | post | rezero
    norm_eps: float = 1e-6
    embedding_norm: bool = True
    neighbours: int = 0  # tokens before (encoder: and behind) each whose embeddings join its own, see nn/neighbours.py
    scale_embeddings: bool = False  # times sqrt(d_model), Vaswani et al. 2017
    activation: str = "relu2"  # gelu | gelu_tanh | relu | relu2 | silu
    gated: bool = False
    qk_norm: bool = True
    attention_scale: float | None = None  # of the attention logits; None: 1 / sqrt(head_dim); T5: 1
    value_embeddings: bool = False  # one table for all layers of a stack, added to v
    bias: bool = False
    dropout: float = 0.0
    tie_embeddings: bool = False
    softcap: float | None = 15.0  # of the output logits; None: none
    zero_init: bool = True  # residual projections and untied head start at 0
    init_std: float | None = None  # None: 1 / sqrt(fan_in)
    depth_scaled_init: bool = False  # residual projections / sqrt(sublayers), GPT-2
    activation_checkpointing: bool = False  # per block: less memory for a third more time
    compile: bool | str = (
        False  # per block; true, or a mode of torch.compile: reduce-overhead (CUDA graphs), max-autotune
    )
    packed_attention: str = "dense"  # dense | flex: over several documents a block; flex leaves out what none shares

    def __post_init__(self) -> None:
        def derive(name: str, value: int) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        derive("n_kv_heads", self.n_heads)
        derive("n_decoder_layers", self.n_layers)
        if not _whole(self.d_model) or not _whole(self.n_heads) or self.n_heads < 1:
            return  # `check` says so
        derive("d_ff", -(-8 * self.d_model // (3 * 64)) * 64 if self.gated else 4 * self.d_model)
        if self.d_model % self.n_heads == 0:
            derive("head_dim", self.d_model // self.n_heads)

    def check(self) -> None:
        """Raises UserError for what no model can be built from."""
        for name in WHOLE:
            value, least = getattr(self, name), 0 if name in ("n_segments", "neighbours") else 1
            if not _whole(value) or value < least:
                raise UserError(f"model.{name}={value}; a whole number of at least {least} is needed{_example(name)}")
        for name, words in WORDS.items():
            word = getattr(self, name)
            if word not in words:
                near = nearest(str(word), words)
                raise UserError(f"model.{name}={word}; it can be {', '.join(words)}{near or _example(name)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise UserError(f"model.{field.name}={value}; type model.{field.name}=true or model.{field.name}=false")
        if not isinstance(self.compile, bool | str) or self.compile not in COMPILE:  # 1 == True
            raise UserError(f"model.compile={self.compile}; it can be false, true, reduce-overhead or max-autotune")
        if self.packed_attention == "flex" and (self.dropout or self.positions in ("alibi", "t5")):
            raise UserError(
                "model.packed_attention=flex knows neither dropout nor position biases (alibi, t5); "
                "type model.packed_attention=dense"
            )
        self._check_numbers()
        self._check_heads()

    def _check_heads(self) -> None:
        heads, model = self.n_heads, self.d_model
        if self.head_dim is None:
            fitting = [n for n in range(1, model + 1) if model % n == 0]
            near = min(fitting, key=lambda n: abs(n - heads))
            raise UserError(
                f"model.d_model={model} is not divisible by model.n_heads={heads}; type model.n_heads={near}, "
                f"or model.d_model={-(-model // heads) * heads}"
            )
        if not _whole(self.head_dim) or self.head_dim < 1:
            raise UserError(
                f"model.head_dim={self.head_dim}; a whole number of at least 1 is needed, e.g. model.head_dim=64"
            )
        if heads % self.n_kv_heads:
            fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise UserError(
                f"model.n_heads={heads} is not divisible by model.n_kv_heads={self.n_kv_heads}; "
                f"type one of model.n_kv_heads={fitting}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"rotary positions turn pairs of channels, and heads of {self.head_dim} channels are odd; "
                f"type model.head_dim={self.head_dim + 1} or model.positions=alibi"
            )
        if self.positions == "sinusoidal" and model % 2:
            raise UserError(
                f"sinusoidal positions need an even d_model, and {model} is odd; type model.d_model={model + 1}"
            )

    def _check_numbers(self) -> None:
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.dropout={self.dropout}; a share from 0 to below 1 is needed; type model.dropout=0.1"
            )
        for name in ("norm_eps", "rotary_base", "softcap", "init_std", "attention_scale"):
            value, may_be_null = getattr(self, name), name in ("softcap", "init_std", "attention_scale")
            if value is None and may_be_null:
                continue
            if not _number(value) or value <= 0:
                null = " or null" if may_be_null else ""
                raise UserError(f"model.{name}={value}; a number above 0{null} is needed{_example(name)}")
        if self.positions == "t5" and (
            self.position_buckets % 4 or self.position_max_distance <= self.position_buckets // 2
        ):
            raise UserError(
                f"model.position_buckets={self.position_buckets} for a model.position_max_distance of "
                f"{self.position_max_distance}; the buckets must be a multiple of 4 and less than twice the distance; "
                "type model.position_buckets=32"
            )


def _example(name: str) -> str:
    """What to type, by the value that stands in the defaults."""
    default = next(field.default for field in fields(TransformerConfig) if field.name == name)
    unset = {"vocab_size": 8192, "d_ff": 2048, "head_dim": 64, "init_std": 0.02, "attention_scale": 1.0}
    return f"; type e.g. model.{name}={unset.get(name, default) or 4}"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
