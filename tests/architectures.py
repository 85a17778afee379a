"""Tiny random encoders of several architectures, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast
from transformers.models.bert import BertConfig
from transformers.models.modernbert import ModernBertConfig
from transformers.models.qwen3 import Qwen3Config
from transformers.models.xlm_roberta import XLMRobertaConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?![]():-'<>/|_"
QUERY_PROMPT = "Instruct: find the passage\nQuery: "
NAMES = ("bert", "xlm-roberta", "modernbert", "decoder")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A word-piece tokeniser of single letters, with the special tokens of the architecture."""
    special = {
        "bert": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
        "modernbert": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
        "xlm-roberta": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>",
                        "cls_token": "<s>", "unk_token": "<unk>"},
        "decoder": {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"},
    }[name]  # fmt: skip
    pieces = list(dict.fromkeys([*special.values(), *LETTERS, *("##" + letter for letter in LETTERS)]))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    template = "$A <eos>" if name == "decoder" else f"{special['cls_token']} $A {special['sep_token']}"
    used = [piece for piece in template.split() if piece != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(piece, vocabulary[piece]) for piece in dict.fromkeys(used)]
    )
    side = "left" if name == "decoder" else "right"
    names = ["input_ids", "token_type_ids", "attention_mask"] if name == "bert" else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=side,
        model_input_names=names,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        **special,
    )


def build(name: str, folder: Path) -> Path:
    """Write a sentence-transformers folder of a random encoder."""
    try:
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    except ImportError:
        from sentence_transformers.models import Normalize, Pooling, Transformer

    torch.manual_seed(5)
    tokenizer = tokenizer_of(name)
    common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **SIZES}
    config = {
        "bert": lambda: BertConfig(max_position_embeddings=64, **common),
        "xlm-roberta": lambda: XLMRobertaConfig(max_position_embeddings=66, **common),
        "modernbert": lambda: ModernBertConfig(max_position_embeddings=64, global_attn_every_n_layers=1, **common),
        "decoder": lambda: Qwen3Config(max_position_embeddings=64, num_key_value_heads=2, head_dim=16, **common),
    }[name]()
    raw = folder / "raw"
    AutoModel.from_config(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=48)
    pooling = Pooling(32, "lasttoken" if name == "decoder" else "cls" if name == "xlm-roberta" else "mean")
    prompts = {"query": QUERY_PROMPT, "document": "passage: "} if name in ("decoder", "xlm-roberta") else None
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], prompts=prompts, device="cpu")
    model.save(str(folder / "encoder"))
    return folder / "encoder"
