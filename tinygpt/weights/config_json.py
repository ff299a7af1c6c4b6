"""config.json: a model's shape as a published family has it, as nanoGPT has it, and in a form of our own for what none of them can say."""

from dataclasses import dataclass
from pathlib import Path

from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput, WrongType
from tinygpt.model_config import GPTConfig, ModelConfig
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.storage.checked_json import Json
from tinygpt.weights.bert import BERT, OUR_ENCODER, ROBERTA
from tinygpt.weights.family import Family, Fields
from tinygpt.weights.gemma import GEMMA, GEMMA2, GEMMA3
from tinygpt.weights.gpt2 import GPT2, OURS
from tinygpt.weights.gpt_neox import GPT_NEOX
from tinygpt.weights.llama import LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3
from tinygpt.weights.marian import MARIAN, OUR_SEQ2SEQ
from tinygpt.weights.nanochat import NANOCHAT
from tinygpt.weights.opt import OPT
from tinygpt.weights.t5 import T5

FAMILIES = (GPT2, LLAMA, QWEN2, QWEN3, MISTRAL, OLMO2, GEMMA, GEMMA2, GEMMA3, GPT_NEOX, OPT, NANOCHAT, BERT, ROBERTA, MARIAN, T5)
"""Those that are read and written. A model is saved as the first that describes its config."""

OWN = (OURS, OUR_ENCODER, OUR_SEQ2SEQ)
"""For each class of configs the form of our own, for models that no published family describes."""


@dataclass(frozen=True)
class Kind:
    """A kind of model: by the shape of its body, and what it predicts.

    config      the class of its shapes
    classifier  whether it predicts labels of texts, instead of tokens
    what        in a message
    use         how to load it, and the script that shows it, with the flag that its path follows; in a message
    """

    config: type[ModelConfig]
    classifier: bool
    what: str
    use: str


LANGUAGE_MODEL, CLASSIFIER = GPT2.architecture, "GPT2ForSequenceClassification"
ENCODER, ENCODER_CLASSIFIER = BERT.architecture, "BertForSequenceClassification"
ENCODER_DECODER = MARIAN.architecture
KINDS = {
    LANGUAGE_MODEL: Kind(GPTConfig, False, "a language model", "GPT.from_pretrained, or examples/generate.py --run"),
    CLASSIFIER: Kind(GPTConfig, True, "a classifier", "GPTClassifier.from_pretrained, or examples/finetune_classifier.py --ask"),
    ENCODER: Kind(EncoderConfig, False, "an encoder", "Encoder.from_pretrained, or examples/fill_mask.py --run"),
    ENCODER_CLASSIFIER: Kind(
        EncoderConfig, True, "an encoder's classifier", "EncoderClassifier.from_pretrained, or examples/finetune_classifier.py --ask"
    ),
    ENCODER_DECODER: Kind(Seq2SeqConfig, False, "an encoder-decoder", "Seq2Seq.from_pretrained, or examples/translate.py --ask"),
}
"""By the name of one of their classes in transformers, GPT-2's for example."""

_MOE = "a mixture of experts: each token goes through a few of many MLPs, which GPT's blocks do not have"
_PICTURES = "reads pictures or sound, too: take the family's model for text alone"
_REFUSED = {
    "distilbert albert electra deberta deberta-v2 modernbert camembert xlm-roberta": "an encoder that no table here describes",
    "mt5 umt5 bart mbart pegasus m2m_100 blenderbot prophetnet longt5": "an encoder-decoder that no table here describes",
    "whisper speech_to_text vision-encoder-decoder": "reads sound or pictures",
    "mamba mamba2 rwkv recurrent_gemma falcon_mamba jamba zamba zamba2 bamba xlstm": "not a transformer: states take attention's place",
    "gemma3 gemma3n gemma4 llava mllama idefics paligemma qwen2_vl qwen2_5_vl qwen3_vl smolvlm mistral3": _PICTURES,
    "smollm3": "some of its blocks have no rotary positions, and `positions` is the same for all blocks",
    "phi": "its output layer has a bias",
    "phi3 falcon bloom mpt gpt_bigcode": "its projections are fused in an order that no table here describes",
    "gptj codegen": "turns neighboring channels of a head, where GPT turns its halves",
    "gpt_neo starcoder2 olmo olmo3 cohere cohere2 granite stablelm glm glm4 exaone exaone4 nemotron": "no table here describes it",
}
"""What is asked for most often, and why it does not load."""


def another_kind(path: Path, found: str, *wanted: str) -> InvalidInput:
    """The error for a model of one kind where another is needed, or one of several; all are keys of KINDS."""
    rule = " or ".join(KINDS[kind].what for kind in wanted)
    return InvalidInput(f"{path}: {KINDS[found].what}, expected {rule}; load it with {KINDS[found].use} {path}")


def architecture_of(fields: Fields) -> str:
    """The kind of model that config.json describes, a key of KINDS; a language model where its model_type is unknown."""
    named, family = fields.get("architectures"), _known().get(str(fields.get("model_type")), GPT2)
    classifier = isinstance(named, list) and any(str(name).endswith("ForSequenceClassification") for name in named)
    return kind_of(family.config, classifier)


def kind_of(config: type[ModelConfig], classifier: bool = False) -> str:
    """The key of KINDS for a class of configs; without classifiers of a kind, that of its models without."""
    kinds = {kind.classifier: name for name, kind in KINDS.items() if kind.config is config}
    return kinds.get(classifier, kinds[False])


def _known() -> dict[str, Family]:
    return {family.model_type: family for family in (*FAMILIES, *OWN)}


def family_of(config: ModelConfig, kind: str = LANGUAGE_MODEL) -> Family:
    """As which family a model of this shape is saved: the first that describes it exactly, else the form of our own. kind: a key of KINDS."""
    found = (family for family in FAMILIES if (not KINDS[kind].classifier or family.classifier) and family.describes(config))
    return next(found, next(family for family in OWN if isinstance(config, family.config)))


def format_note(config: ModelConfig, kind: str = LANGUAGE_MODEL) -> str:
    """Who cannot read a checkpoint of this model, and why; empty where its format is a published one."""
    own = family_of(config, kind)
    if own not in OWN:
        return ""
    options: Fields = getattr(config, "options", dict)()
    what = ", ".join(f"{name} {value!r}" for name, value in options.items())
    why = f"none of {', '.join(family.model_type for family in FAMILIES if family.config is own.config)} has {what}, taken together"
    if KINDS[kind].classifier and (family := family_of(config)) not in OWN:
        why = f"it has no classifier for {family.model_type}"
    return f"saved with model_type {own.model_type!r}, which transformers cannot read: {why}"


def named_family(path: Path, fields: Fields) -> Family:
    """The family of the config.json at `path`, by its model_type; nanoGPT's `model_args`, which have none, count as GPT-2's.

    Raises ValueError for one that is not supported, saying why, and for quantized weights.
    """
    kind = fields.get("model_type")
    if kind is None and "block_size" in fields:
        return GPT2
    known = _known()
    if not isinstance(kind, str) or kind not in known:
        reasons = {name: reason for names, reason in _REFUSED.items() for name in names.split()}
        reason = _MOE if _has_experts(fields) else reasons.get(str(kind), "docs/checkpoints.md says what loads")
        raise InvalidInput(f"{path}: model_type {kind!r}, expected one of {', '.join(f.model_type for f in FAMILIES)}; {kind}: {reason}")
    for key in [key for key in _QUANTIZED if fields.get(key) is not None]:
        how = fields[key]
        method = how["quant_method"] if isinstance(how, dict) and how.get("quant_method") else how
        rule = "expected float32, float16 or bfloat16 weights; take the files from which these were quantized"
        raise InvalidInput(f"{path}: {key} {method!r:.80}, {rule}")
    return known[kind]


_QUANTIZED = ("quantization_config", "quantization", "compression_config")
"""Keys for how packed numbers are to be read: transformers', MLX's, and those of earlier versions of compressed-tensors."""


def _has_experts(fields: Fields) -> bool:
    text = fields.get("text_config")
    keys = fields | (text if isinstance(text, dict) else {})
    return any("expert" in key and value for key, value in keys.items()) or "moe" in str(fields.get("model_type"))


def read_config(path: Path, fields: Fields) -> ModelConfig:
    """The shape that the fields of the config.json at `path` describe: a published family's, nanoGPT's `model_args`, or our own form.

    Raises ValueError for another architecture, and for a variant that our models do not compute.
    """
    family = named_family(path, fields)
    try:
        return _read_config(family, fields)
    except (InvalidInput, WrongType) as error:
        raise type(error)(f"{path}: {error}") from None


def _read_config(family: Family, fields: Fields) -> ModelConfig:
    if "block_size" in fields and "model_type" not in fields:  # nanoGPT's
        shape = {key: fields[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size") if key in fields}
        return GPTConfig(n_positions=fields["block_size"], dropout=fields.get("dropout", 0.0), **shape)
    read = family.read(fields)
    if family.config is not GPTConfig:
        return family.config.from_dict(read)
    dropouts = GPTConfig.from_dict({name: read[name] for name in ("dropout", "embd_pdrop", "attn_pdrop") if name in read}).dropouts
    dropouts |= {name: fields[name] for name in dropouts if name in fields}  # ours, where the family has none
    read |= {"dropout": dropouts["resid_pdrop"], "embd_pdrop": dropouts["embd_pdrop"], "attn_pdrop": dropouts["attn_pdrop"]}
    if dropouts["embd_pdrop"] == dropouts["attn_pdrop"] == dropouts["resid_pdrop"]:
        read |= {"embd_pdrop": None, "attn_pdrop": None}
    config = GPTConfig.from_dict(read)
    as_gpt2 = {"n_kv_head": config.n_head, "head_size": config.n_embd / config.n_head, "n_inner": 4 * config.n_embd}
    return GPTConfig.from_dict(read | {name: None for name, value in as_gpt2.items() if getattr(config, name) == value})


def config_fields(config: ModelConfig, eos_id: int | None, more: dict[str, Json]) -> Fields:
    """What config.json holds: the shape under the keys of its family, the tokenizer's end token, and `more`, such as a classifier's labels."""
    kind = architecture_of(more)
    family = family_of(config, kind)
    fields = {"model_type": family.model_type, "architectures": [family.architecture]} | family.write(config)
    named = {"architectures": [family.classifier]} if KINDS[kind].classifier else {}
    if not isinstance(config, GPTConfig):
        return more | fields | named  # the ids of padding and end are the model's, whatever the tokenizer has
    ends = {"bos_token_id": eos_id, "eos_token_id": eos_id} | ({} if family in (GPT2, OURS) else {"pad_token_id": None})
    kept = GPTConfig.from_dict(family.read(fields)).dropouts
    lost = {name: p for name, p in config.dropouts.items() if kept[name] != p}  # in keys of GPT-2's, which others ignore
    return fields | lost | ends | more | named
