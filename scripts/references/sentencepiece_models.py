#!/usr/bin/env python3
"""Small SentencePiece models, and the tokens that the sentencepiece package makes of texts with them. Needs sentencepiece 0.2.

    python3 scripts/references/sentencepiece_models.py tests/fixtures/sentencepiece

- marian/: source.spm and target.spm (Unigram), and a vocab.json with the pieces of both, as in Marian's folders. Numbers are those that
  MarianTokenizer finds: pieces are looked up in vocab.json, unknown runs as they are written.
- t5/: spiece.model (Unigram with pieces given by the user) and a config.json, as in T5's folders.
- llama/: tokenizer.model (BPE, bytes for what is unknown, spaces kept), as in LLaMA's folders.
- cases.json: texts with their tokens, and the texts that the tokens are read back as.
"""

import gzip
import io
import json
import sys
from pathlib import Path

import sentencepiece

REPOSITORY = Path(__file__).resolve().parent.parent.parent

GERMAN = """Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.
Mehrere Männer mit Schutzhelmen bedienen ein Antriebsradsystem.
Ein kleines Mädchen klettert in ein Spielhaus aus Holz.
Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster.
Zwei Männer stehen am Herd und bereiten Essen zu.
Ein Mann in grün hält eine Gitarre, während der andere Mann sein Hemd ansieht.
Ein Mann lächelt einen ausgestopften Löwen an.
Ein schickes Mädchen spricht mit dem Handy während sie langsam die Straße entlangschwebt.
Eine Frau mit einer großen Geldbörse geht an einem Tor vorbei.
Jungen tanzen mitten in der Nacht auf Pfosten.
"""

TEXTS = [
    "First Citizen: we are accounted poor citizens.",
    "Zwei Männer stehen auf der Straße.",
    "  spaces   here and  there ",
    "",
    " ",
    "a",
    "1, 2 and 37 times; what's up?",
    "ﬁne ½ ａｂｃ №5 … “quoted”",
    "naïve café 日本語 жизнь 🙂",
    "ж",
    "tab\tand\u00a0nbsp",
    "the <extra_id_0> end </s> <unk>",
    "new\nline",
    "KING HENRY IV: O, what's this? Alas! alas! alas!",
    "xyzzyquux zzz qqq",
    "☃☃ snow ☃",
]


def train(sentences, vocabulary, **settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocabulary, minloglevel=2, num_threads=1, **settings
    )
    return model.getvalue()


def main():
    folder = Path(sys.argv[1])
    english = gzip.decompress((REPOSITORY / "assets/texts/shakespeare-mini.txt.gz").read_bytes()).decode()
    english = [line for line in english.splitlines() if line][:600]
    german = GERMAN.splitlines() * 3
    # A few rules in place of the large table of Unicode's compatibility forms: code points before and after.
    rules = folder / "rules.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    replaced = {"ﬁ": "fi", "½": "1⁄2", "№": "No", "…": "...", "“": '"', "”": '"', "\t": " ", "\u00a0": " ", "\n": " "}
    replaced |= {chr(ord(letter) - ord("a") + 0xFF41): letter for letter in "abcdefghijklmnopqrstuvwxyz"}
    codes = lambda text: " ".join(f"{ord(letter):X}" for letter in text)
    rules.write_text("".join(f"{codes(old)}\t{codes(new)}\n" for old, new in replaced.items()))
    cases = {}

    # As Marian's own training calls it: no number for padding.
    unigram = {"model_type": "unigram", "normalization_rule_tsv": str(rules), "bos_id": -1}
    source = train(english, 220, eos_id=0, unk_id=1, **unigram)
    target = train(german + ["жизнь ж"] * 5, 120, eos_id=0, unk_id=1, character_coverage=1.0, **unigram)
    marian = folder / "marian"
    marian.mkdir(exist_ok=True)
    pieces, models = ["</s>", "<unk>"], {}
    for name, model in (("source", source), ("target", target)):
        (marian / f"{name}.spm").write_bytes(model)
        models[name] = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces += [models[name].id_to_piece(number) for number in range(2, models[name].vocab_size())]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    vocabulary["<pad>"] = len(vocabulary)
    (marian / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n")
    for name, model in models.items():
        encoded = [[vocabulary.get(piece, 1) for piece in model.encode(text, out_type=str)] for text in TEXTS]
        cases[f"marian {name}"] = [{"text": text, "tokens": tokens} for text, tokens in zip(TEXTS, encoded)]

    t5 = folder / "t5"
    t5.mkdir(exist_ok=True)
    model = train(english, 250, pad_id=0, eos_id=1, unk_id=2, user_defined_symbols=["<sep>", "KING"], **unigram)
    (t5 / "spiece.model").write_bytes(model)
    (t5 / "config.json").write_text(json.dumps({"model_type": "t5"}) + "\n")
    llama = folder / "llama"
    llama.mkdir(exist_ok=True)
    settings = {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity", "split_digits": True}
    model = train(english, 560, model_type="bpe", **settings)
    (llama / "tokenizer.model").write_bytes(model)
    for name, file in (("t5", t5 / "spiece.model"), ("llama", llama / "tokenizer.model")):
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        # Hugging Face's tokenizers find marks in texts, which the package does not.
        texts = [text for text in TEXTS if "</s>" not in text] + ["KING <sep> and<sep>KINGDOM"] * (name == "t5")
        cases[name] = [
            {"text": text, "tokens": model.encode(text), "decoded": model.decode(model.encode(text))} for text in texts
        ]
        cases[f"{name} size"] = model.vocab_size()
    rules.unlink()
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
