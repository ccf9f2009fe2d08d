#!/usr/bin/env python3
"""Makes assets/texts/shakespeare-plays.tsv.gz: speeches of Shakespeare with the play that each is from.

    python3 scripts/make_text_assets.py FILE [ASSETS]

FILE is karpathy/char-rnn's tinyshakespeare `input.txt` (public domain), which has the speeches of several plays one behind the other, each below
the name of its speaker. Five plays are told by speakers that occur in one of them alone; speeches of others are left out, so is what is
shorter than three words. Names of speakers are not part of the texts.
"""

import gzip
import hashlib
import sys
from pathlib import Path

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PLAYS = {
    "coriolanus": "MENENIUS CORIOLANUS SICINIUS BRUTUS COMINIUS VOLUMNIA AUFIDIUS MARCIUS",
    "measure": "DUKE_VINCENTIO ISABELLA LUCIO ANGELO ESCALUS Provost POMPEY",
    "romeo": "ROMEO JULIET Nurse BENVOLIO MERCUTIO FRIAR_LAURENCE CAPULET LADY_CAPULET",
    "shrew": "PETRUCHIO TRANIO KATHARINA HORTENSIO BAPTISTA GRUMIO LUCENTIO GREMIO",
    "winter": "LEONTES CAMILLO AUTOLYCUS PAULINA POLIXENES FLORIZEL HERMIONE PERDITA",
}


def speeches(text):
    play_of = {name.replace("_", " "): play for play, names in PLAYS.items() for name in names.split()}
    for block in text.split("\n\n"):
        speaker, _, speech = block.partition(":\n")
        words = " ".join(speech.split())
        if speaker in play_of and len(words.split()) >= 3:
            yield words, play_of[speaker]


def main(source, assets):
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"{source} is not the file that this script knows")
    # An order that mixes the plays and depends on nothing but the speeches.
    rows = sorted(speeches(content.decode()), key=lambda row: hashlib.sha256("\t".join(row).encode()).digest())
    text = "text\tlabel\n" + "".join(f"{words}\t{play}\n" for words, play in rows)
    target = assets / "texts" / "shakespeare-plays.tsv.gz"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())
    print(f"{len(rows)} speeches, {target.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    repository = Path(__file__).resolve().parent.parent
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else repository / "assets")
