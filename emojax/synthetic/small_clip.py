"""A new, small CLIP to be trained: its tokenizer from own texts, its Hugging Face settings, random weights."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flax import nnx

from emojax.data.clip_encoder import CLIP_MEAN, CLIP_STD, ClipEncoder, HfTokenizer, Preprocess
from emojax.models.clip import Clip, ClipConfig

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], merges: int = 512) -> Any:
    """A transformers CLIPTokenizer with at most so many merges; any text can be encoded, known words in few tokens.

    The vocabulary is laid out as OpenAI's: 256 bytes, the same at word ends, merges, start and end token.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    plain = CLIPTokenizer(vocab={piece: i for i, piece in enumerate([*pieces, START, END])}, merges=[]).backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=len(pieces) + merges, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    pairs = [tuple(pair) for pair in model["merges"]][:merges]
    vocabulary = [*pieces, *("".join(pair) for pair in pairs), START, END]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=pairs)


class NewClip(NamedTuple):
    """An encoder with random weights and what `clip_folder.save_clip` writes beside them."""

    encoder: ClipEncoder
    hf_config: Any
    tokenizer: Any


def small_clip(texts: Sequence[str], seed: int) -> NewClip:
    """0.8 M parameters for images of 48×48 and captions like `texts`: small enough to train on a laptop.

    Patches of 12×12 pixels make 16 tokens; patches of 8 see little more here and take twice the time.
    """
    from transformers import CLIPConfig

    tokenizer = train_tokenizer(texts)
    words = len(tokenizer)
    special = {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    hf_config = CLIPConfig(
        text_config=text | special | {"max_position_embeddings": 40},
        vision_config=vision | {"image_size": 48, "patch_size": 12},
        projection_dim=64,
    )
    config = ClipConfig.from_hf(hf_config.to_dict())
    model = nnx.jit(lambda: Clip(config, rngs=nnx.Rngs(seed)))()  # jitted: eager drawing takes ten times as long
    preprocess = Preprocess(resize=48, crop=(48, 48), mean=CLIP_MEAN, std=CLIP_STD)
    encoder = ClipEncoder(model, preprocess, HfTokenizer(tokenizer), "new CLIP")
    return NewClip(encoder, hf_config, tokenizer)
