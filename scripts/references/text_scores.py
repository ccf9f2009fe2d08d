#!/usr/bin/env python3
"""Scores of generated text. Needs sacrebleu 2.6.0 and rouge-score 0.1.2.

    python3 scripts/references/text_scores.py > tests/fixtures/text_scores.json
"""

import json
import random

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

REFERENCES = [
    "A man in an orange hat is starring at something.",
    "Two young, white males are outside near many bushes.",
    "The price rose 1,234.50 dollars (about 3%) in 2019-20, said Smith's brother.",
    "\"Well,\" she said, \"that's it -- isn't it?\" He didn't answer; the dog's tail moved.",
    "Ein Kind, das einen roten Ball über die Straße wirft, läuft schnell.",
    "Tom &amp; Jerry &lt;b&gt; cost €5.00 or £4,20; see http://example.org/a?b=1&c=2 .",
    "一个男人在街上走路。 他戴着 red hat，很高兴！",
    "ＡＢＣ １２３ …… “quoted” — dash – dash · point",
    "the the the cat sat on the mat while the other cat slept under the the table",
    "Yes.",
    "",
    "ÄÖÜ äöü ΣΑΣ İstanbul",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n",
    "First line of a summary.\nSecond line, with words of the first summary line.\nThird.",
]


def vary(text: str, rng: random.Random) -> str:
    lines = []
    for line in text.split("\n"):
        words = line.split(" ")
        for _ in range(rng.randrange(4)):
            if len(words) > 3:
                kind, at = rng.randrange(4), rng.randrange(len(words) - 2)
                if kind == 0:
                    words.pop(at)
                elif kind == 1:
                    words.insert(at, rng.choice(["the", "word", ",", "x."]))
                elif kind == 2:
                    words[at] = rng.choice(["something", words[at].upper(), words[at] + "s"])
                else:
                    length = rng.randrange(1, 5)
                    run = words[at:at + length]
                    del words[at:at + length]
                    target = rng.randrange(len(words) + 1)
                    words[target:target] = run
        lines.append(" ".join(words))
    return "\n".join(lines)


def main():
    rng = random.Random(11)
    references = [[text, text.lower() if index % 2 else vary(text, rng)] for index, text in enumerate(REFERENCES * 6)]
    hypotheses = [vary(text, rng) for text in REFERENCES * 6]
    hypotheses[3] = ""
    hypotheses[-2] = " ".join(reversed(REFERENCES[-2].split(" ")))
    hypotheses[-3] = " ".join(reversed(REFERENCES[-3].split(" ")[10:]))
    streams = {1: [[r[0] for r in references]], 2: [list(column) for column in zip(*references)]}

    def corpus(metric, count):
        score = metric.corpus_score(hypotheses, streams[count])
        return {"references": count, "score": score.score, "signature": str(metric.get_signature())}

    bleu = []
    for count in (1, 2):
        for tokenize in ("13a", "intl", "zh", "char", "none"):
            for lowercase in (False, True):
                bleu.append({"tokenize": tokenize, "lowercase": lowercase, "smoothing": "exp",
                             **corpus(BLEU(tokenize=tokenize, lowercase=lowercase), count)})
    for smoothing in ("floor", "add-k", "none"):
        bleu.append({"tokenize": "13a", "lowercase": False, "smoothing": smoothing, **corpus(BLEU(smooth_method=smoothing), 1)})
    sentence_bleu = {
        smoothing: [BLEU(effective_order=True, smooth_method=smoothing).sentence_score(h, r[:1]).score for h, r in zip(hypotheses, references)]
        for smoothing in ("exp", "floor", "add-k", "none")
    }
    chrf = [{"word_order": words, "whitespace": space, "lowercase": lower,
             **corpus(CHRF(word_order=words, whitespace=space, lowercase=lower), count)}
            for words in (0, 2) for space in (False, True) for lower in (False, True) for count in (1, 2)]
    ter = [{"normalized": normal, "no_punctuation": bare, "case_sensitive": case,
            **corpus(TER(normalized=normal, no_punct=bare, case_sensitive=case), count)}
           for normal in (False, True) for bare in (False, True) for case in (False, True) for count in (1, 2)]
    sentence_ter = [TER().sentence_score(h, r[:1]).score for h, r in zip(hypotheses, references)]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    rouge = [{kind: score.fmeasure for kind, score in scorer.score(r[0], h).items()} for h, r in zip(hypotheses, references)]
    print(json.dumps({"hypotheses": hypotheses, "references": references, "bleu": bleu, "sentence_bleu": sentence_bleu, "chrf": chrf,
                      "ter": ter, "sentence_ter": sentence_ter, "rouge": rouge}, ensure_ascii=False))


main()
