"""Makes the demo model from its corpus: corpus, tokenizer, packed batches, training, files, figures for the card.

    python models/demo/train.py

One thread and fixed seeds: the same machine and library versions give the same model again.
"""

import argparse
import json
import math
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
import transformers
from documents import Corpus, Document, Draw, Messages, Plain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent

SPECIAL = ["<|pad|>", "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, END_OF_TEXT, IM_START, IM_END = range(len(SPECIAL))
UNSCORED = -100


@dataclass(frozen=True)
class Recipe:
    seed: int = 20
    vocabulary: int = 3072
    context: int = 2048
    hidden: int = 256
    inner: int = 704
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    epochs: int = 26
    tokens_per_step: int = 2048
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1


# --- tokenizer


def make_tokenizer(corpus: Corpus, recipe: Recipe) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus.texts(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=bpe,
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[IM_END],
        pad_token=SPECIAL[PAD],
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
        chat_template=(HERE / "chat_template.jinja").read_text(),
    )


# --- documents as tokens


@dataclass(frozen=True)
class Tokens:
    ids: list[int]
    targets: list[int]
    """What each position should predict; `UNSCORED` wherever the model is spoken to."""


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    if isinstance(document, Plain):
        given = tokenizer.encode(document.given)
        follows = tokenizer.encode(document.follows, add_special_tokens=False)
        return Tokens(given + follows, [UNSCORED] * (len(given) - 1) + follows + [END_OF_TEXT])
    ids = cast("list[int]", tokenizer.apply_chat_template(document, return_dict=False))
    opening = tokenizer.encode(SPECIAL[IM_START] + "assistant\n", add_special_tokens=False)
    targets: list[int] = []
    scored = False
    for at, following in enumerate(ids[1:], 1):
        scored = scored or ids[at - len(opening) : at] == opening
        targets.append(following if scored else UNSCORED)
        scored = scored and following != IM_END
    return Tokens(ids[:-1], targets)


@dataclass(frozen=True)
class Batch:
    ids: torch.Tensor
    targets: torch.Tensor


def pack(documents: list[Tokens], tokens: int, rng: random.Random) -> list[Batch]:
    """Batches of about as many tokens each, made of documents of about the same length, so that little is padding."""
    batches: list[list[Tokens]] = [[]]
    for document in sorted(documents, key=lambda document: len(document.ids)):
        if len(document.ids) * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(document)
    rng.shuffle(batches)
    return [_batch(batch) for batch in batches]


def _batch(documents: list[Tokens]) -> Batch:
    width = max(len(document.ids) for document in documents)
    ids = [document.ids + [PAD] * (width - len(document.ids)) for document in documents]
    targets = [document.targets + [UNSCORED] * (width - len(document.targets)) for document in documents]
    return Batch(torch.tensor(ids), torch.tensor(targets))


# --- model and training


def make_model(recipe: Recipe) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.hidden // recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=[IM_END, END_OF_TEXT],
            pad_token_id=PAD,
        )
    )
    model.set_attn_implementation("eager")  # the fused kernel is slower for rows as short as these
    return model


def train(
    model: LlamaForCausalLM, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> tuple[float, int]:
    """The mean loss over the last epoch, and the number of steps."""
    rng = random.Random(recipe.seed)
    draw = Draw(corpus, rng)
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    vectors = [weights for weights in model.parameters() if weights.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    mean, step, started = math.nan, 0, time.monotonic()
    for epoch in range(recipe.epochs):
        documents = [encode(document, tokenizer) for document in draw.epoch()]
        batches = pack(documents, recipe.tokens_per_step, rng)
        losses = []
        for at, batch in enumerate(batches):
            cosine = 0.5 + 0.5 * math.cos(math.pi * (epoch + at / len(batches)) / recipe.epochs)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps) * cosine
            loss = _loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
        mean = sum(losses) / len(losses)
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{recipe.epochs}  step {step}  loss {mean:.4f}  {seconds:.0f} s", flush=True)
    return mean, step


def _loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    scored = batch.targets != UNSCORED
    return cross_entropy(_logits(model, batch, scored).float(), batch.targets[scored])


def _logits(model: LlamaForCausalLM, batch: Batch, scored: torch.Tensor) -> torch.Tensor:
    """One row for each scored position. Matrices are multiplied in bfloat16, as they will be in the finished model."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        logits: torch.Tensor = model.lm_head(hidden[scored])
    return logits


def share_answered(model: LlamaForCausalLM, conversations: list[Messages], tokenizer: PreTrainedTokenizerFast) -> float:
    """How many of the conversations the model would answer word for word at temperature 0."""
    right = 0
    for conversation in conversations:
        batch = _batch([encode(conversation, tokenizer)])
        scored = batch.targets != UNSCORED
        with torch.inference_mode():
            right += torch.equal(_logits(model, batch, scored).argmax(-1), batch.targets[scored])
    return right / len(conversations)


# --- files and figures


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, to: Path) -> None:
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call, unused-ignore]
        do_sample=True,
        temperature=0.2,  # for requests that name none: so small a model rambles at the usual 1.0
        bos_token_id=BOS,
        eos_token_id=[IM_END, END_OF_TEXT],
        pad_token_id=PAD,
    )
    model.save_pretrained(to)
    (to / "model.safetensors").chmod(0o644)  # it is written for its owner alone, and containers run as somebody else
    tokenizer.save_pretrained(to)
    config = to / "tokenizer_config.json"
    known_by_all_versions = {**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(known_by_all_versions, indent=2) + "\n")


def write_figures(figures: dict[str, Any], to: Path) -> None:
    """`training.json`, and the same in the table of the model card."""
    (to / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    card = to / "README.md"
    if card.exists():
        rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in figures.items() if name != "recipe"]
        table = "\n".join(["<!-- figures -->", "| | |", "| --- | --- |", *rows, "<!-- /figures -->"])
        card.write_text(
            re.sub("<!-- figures -->.*<!-- /figures -->", lambda _: table, card.read_text(), flags=re.DOTALL)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=HERE, help="where the files go (default: beside this script)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="rounds over the corpus (%(default)s)")
    arguments = parser.parse_args()
    recipe = Recipe(epochs=arguments.epochs)

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    started = time.monotonic()

    corpus = Corpus()
    tokenizer = make_tokenizer(corpus, recipe)
    model = make_model(recipe)
    loss, steps = train(model, corpus, tokenizer, recipe)
    model.bfloat16()
    save(model, tokenizer, arguments.to)

    figures = {
        "parameters": model.num_parameters(),
        "weights_megabytes": round((arguments.to / "model.safetensors").stat().st_size / 1e6, 2),
        "final_loss": round(loss, 4),
        "held_out_phrasings_answered": round(share_answered(model, corpus.held_out(), tokenizer), 3),
        "topics": len(corpus.topics),
        "questions_and_dialogues": len(corpus.questions) + len(corpus.long) + len(corpus.dialogues),
        "steps": steps,
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "recipe": asdict(recipe),
    }
    write_figures(figures, arguments.to)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
