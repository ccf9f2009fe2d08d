#!/usr/bin/env python3
"""Archives for setup.sh: what is in a wheel or a libtorch archive, and taking files out of it.

fetch_data.py uses parts of it.

    unpack.py inspect FILE                    prints: wheel|libtorch VERSION
    unpack.py sha256 FILE                     prints the SHA-256 in hexadecimal
    unpack.py extract FILE FOLDER PATTERN...  unpacks the members that match (a leading ! excludes)

Exit status 2: the archive is not what it should be. Exit status 1: the machine failed. One sentence either way.
"""

import fnmatch
import hashlib
import os
import shutil
import stat
import sys
import zipfile
import zlib


class BadArchive(Exception):
    """The archive itself is wrong, so that another one is the remedy."""


def inspect(path):
    """Says what the archive is: ("wheel" | "libtorch", version)."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if fnmatch.fnmatch(name, "torch-*.dist-info/METADATA"):
                return "wheel", name.split("/")[0][len("torch-") : -len(".dist-info")]
        try:
            return "libtorch", archive.read("libtorch/build-version").decode().strip()
        except KeyError:
            raise BadArchive(
                f"{path} is neither a torch wheel nor a libtorch archive (it has no libtorch/build-version)."
            ) from None


def digest(file, algorithm="sha256"):
    """The digest of an open file, read in pieces: wheels do not belong into memory."""
    value = hashlib.new(algorithm)
    while piece := file.read(1 << 20):
        value.update(piece)
    return value.hexdigest()


def wanted(name, patterns):
    """Whether a member is asked for: the last pattern that matches decides."""
    keep = False
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern.lstrip("!")):
            keep = not pattern.startswith("!")
    return keep


def extract(path, folder, patterns):
    """Unpacks the chosen members with their permissions; their checksums are verified on the way."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and wanted(m.filename, patterns)]
        needed = sum(member.file_size for member in members)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(f"unpacking it takes {needed // 10**6} MB and only {free // 10**6} MB are free")
        for member in members:
            mode = member.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise BadArchive(f"{path} holds a symbolic link ({member.filename}), which no official archive does.")
            target = archive.extract(member, folder)
            if mode & 0o111:
                os.chmod(target, 0o755)


def main(arguments):
    if len(arguments) == 2 and arguments[0] == "inspect":
        print(*inspect(arguments[1]))
    elif len(arguments) == 2 and arguments[0] == "sha256":
        with open(arguments[1], "rb") as file:
            print(digest(file))
    elif len(arguments) >= 4 and arguments[0] == "extract":
        extract(arguments[1], arguments[2], arguments[3:])
    else:
        raise BadArchive("usage: unpack.py inspect FILE | sha256 FILE | extract FILE FOLDER PATTERN...")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BadArchive as error:
        print(f"setup.sh: {error}", file=sys.stderr)
        sys.exit(2)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        print(f"setup.sh: {sys.argv[2]} is damaged or no zip file ({error}): fetch it again.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"setup.sh: {sys.argv[2]} could not be read or unpacked: {error}.", file=sys.stderr)
        sys.exit(1)
