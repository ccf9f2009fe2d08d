#!/usr/bin/env python3
"""The work of fetch_data.sh: finds data sets, checks them, and lays them out. data.lock says what there is.

    fetch_data.py list LOCK
    fetch_data.py fetch LOCK OUT MIRROR NAME...    MIRROR is empty for the official addresses

Exit status 2: the caller can mend it. Exit status 1: the machine or the network failed. One sentence either way.
"""

import difflib
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass, field

sys.dont_write_bytecode = True  # the folder of the scripts may be read-only
from unpack import BadArchive, digest, wanted  # noqa: E402

# Seconds without a byte after which a connection counts as dead.
TIMEOUT = 30
# Connections in a row that bring nothing before an address is given up; the wait doubles from one second.
ATTEMPTS = 5
PIECE = 1 << 18
OFFICIAL = "official"
RECORD = ".fetched.json"
# What a damaged gzip file or archive raises on the way.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile)


class InputError(Exception):
    """The caller can mend it: exit status 2."""


class Failure(Exception):
    """The machine or the network failed: exit status 1."""


class Absent(Exception):
    """There is no such file at this address."""


class Mismatch(Exception):
    """What lies there is not the pinned file."""


def say(sentence):
    print(f"fetch_data: {sentence}", flush=True)


def size_text(count):
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} bytes"
    value, unit = (count / 1e6, "MB") if count >= 10**6 else (count / 1e3, "kB")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


# ---- The lock file ---------------------------------------------------------------------------------------------------


@dataclass
class File:
    """A file that a source consists of."""

    source: str
    bytes: int  # None if not known
    checksum: tuple  # (algorithm, hexadecimal), None if not known
    content: tuple  # the same of what is in it, uncompressed
    path: str
    form: str
    arguments: list

    @property
    def name(self):
        return os.path.basename(self.path)

    @property
    def may_be_plain(self):
        """Whether a mirror may hold it uncompressed."""
        return self.content is not None and self.name.endswith(".gz")


@dataclass
class DataSet:
    """What data.lock says of one set."""

    name: str
    room: int  # the most bytes that it takes
    what: str
    licence: str = ""
    addresses: list = field(default_factory=list)
    files: list = field(default_factory=list)
    notes: dict = field(default_factory=dict)  # by source

    def sources(self):
        """The names of the sources, in the order of the lock file."""
        return list(dict.fromkeys(file.source for file in self.files))

    def files_of(self, source):
        return [file for file in self.files if file.source == source]

    def pinned(self):
        """Changes when anything that decides what is made changes."""
        return hashlib.sha256(repr(self.files).encode()).hexdigest()


def parse_checksum(text):
    if text in ("none", "-"):
        return None
    algorithm, _, value = text.partition(":")
    if not re.fullmatch(r"[0-9a-f]{%d}" % {"md5": 32, "sha256": 64}[algorithm], value):
        raise ValueError(value)
    return algorithm, value


def read_lock(path):
    """The data sets by name."""
    sets = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                word, name, rest = line.strip().split(maxsplit=2)
                if word == "set":
                    room, what = rest.split(maxsplit=1)
                    sets[name] = DataSet(name, int(room), what)
                elif word == "licence":
                    sets[name].licence = rest
                elif word == "address":
                    sets[name].addresses.append(rest)
                elif word == "note":
                    source, text = rest.split(maxsplit=1)
                    sets[name].notes[source] = text
                elif word == "file":
                    source, count, checksum, content, file, form, *arguments = rest.split()
                    if form not in ("keep", "gunzip", "unpack"):
                        raise ValueError(form)
                    count = None if count == "-" else int(count)
                    sets[name].files.append(
                        File(source, count, parse_checksum(checksum), parse_checksum(content), file, form, arguments)
                    )
                else:
                    raise ValueError(word)
            except (ValueError, KeyError):
                raise InputError(
                    f"line {number} of {path} is not understood: restore the file (git checkout {path})."
                ) from None
    return sets


def list_sets(sets):
    width = max(map(len, sets))
    for dataset in sets.values():
        download = sum(file.bytes or 0 for file in dataset.files_of(OFFICIAL))
        print(f"{dataset.name:{width}}  {size_text(download):>6}  {dataset.what}")
        print(f"{'':{width}}          licence: {dataset.licence}")


# ---- Checking --------------------------------------------------------------------------------------------------------


def is_gzip(path):
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def file_digest(path, algorithm="sha256"):
    with open(path, "rb") as file:
        return digest(file, algorithm)


def content_digest(path, algorithm):
    """The digest of what is in a file, gzipped or not; of nothing if it is damaged."""
    if not is_gzip(path):
        return file_digest(path, algorithm)
    try:
        with gzip.open(path) as file:
            return digest(file, algorithm)
    except DAMAGED:
        return None


def check(file, path):
    """Raises Mismatch if this is not the file that the lock file pins."""
    if file.checksum and file_digest(path, file.checksum[0]) == file.checksum[1]:
        return
    if file.content and content_digest(path, file.content[0]) == file.content[1]:
        return
    found = file_digest(path)
    if file.checksum or file.content:
        raise Mismatch(f"its SHA-256 is {found}")
    say(f"warning: no checksum of {file.name} is known, so it could not be checked; its SHA-256 is {found}.")


# ---- Downloading -----------------------------------------------------------------------------------------------------


class Progress:
    """Says that a transfer has begun, and follows it in a line where somebody looks at it."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.name = os.path.basename(parts.path)
        self.host = parts.netloc
        self.begun = False
        self.shown = 0.0
        self.start = time.monotonic()
        self.received = 0
        self.visible = sys.stderr.isatty()

    def begin(self, total):
        """Not before the server answers: a mirror is asked for some files that it does not have."""
        if not self.begun:
            self.begun = True
            say(f"fetching {self.name}{f' ({size_text(total)})' if total else ''} from {self.host}.")

    def update(self, have, total, received):
        now = time.monotonic()
        self.received += received
        if self.visible and now - self.shown > 0.2:
            self.shown = now
            rate = self.received / max(now - self.start, 0.001)
            of = f" of {total / 1e6:.1f}" if total else ""
            print(f"\r{self.name}: {have / 1e6:.1f}{of} MB, {rate / 1e6:.1f} MB/s \x1b[K", end="", file=sys.stderr)
            sys.stderr.flush()

    def end(self):
        if self.visible and self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def transfer(file, url, partial, most, progress):
    """One connection: appends to the partial file what it lacks. Returns whether the file is whole now.

    Raises what urllib raises, Mismatch if the size is wrong, and Failure if the disk fails.
    """
    have = size_of(partial)
    request = urllib.request.Request(url, headers={"User-Agent": "fetch_data"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if response.status == 206:
            span = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != have:
                raise http.client.HTTPException("the server sent another range than asked for")
            total = int(span[2]) if span[2] != "*" else have + total if total is not None else None
        else:
            have = 0  # The server cannot resume, or there was nothing to resume.
        if total is not None and (total > most or (file.bytes and total != file.bytes and not file.content)):
            raise Mismatch(f"it has {total} bytes where {file.bytes or f'at most {most}'} are expected")
        progress.begin(total)
        try:
            output = open(partial, "ab" if have else "wb")
        except OSError as error:
            raise cannot_write(partial, error) from None
        with output:
            # read would wait for a whole piece, and lose it if the connection breaks off meanwhile.
            while piece := response.read1(PIECE):
                have += len(piece)
                if have > most:
                    raise Mismatch(f"it has more than {most} bytes")
                try:
                    output.write(piece)
                    output.flush()
                except OSError as error:
                    raise cannot_write(partial, error) from None
                progress.update(have, total, len(piece))
    return total is None or have == total


def cannot_write(path, error):
    return Failure(f"{path} could not be written ({error.strerror}): mend it and run this again.")


def reason_of(error):
    """What an exception of urllib says, as a clause."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code}"
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def download(file, url, partial, most):
    """Brings an address to a partial file, trying again and going on where an earlier transfer stopped.

    Raises Absent, Mismatch or Failure.
    """
    progress = Progress(url)
    fruitless = 0
    try:
        while True:
            before = size_of(partial)
            if file.bytes and before == file.bytes:
                return
            try:
                if transfer(file, url, partial, most, progress):
                    return
                reason = "the connection broke off"
            except urllib.error.HTTPError as error:
                reason = reason_of(error)
                # A store of objects answers 403 for what it does not hold, if it does not list what it holds.
                if error.code in (403, 404, 410):
                    raise Absent(reason) from None
                if error.code == 416:
                    os.remove(partial)
                elif error.code < 500 and error.code not in (408, 429):
                    raise Failure(f"{url} cannot be fetched ({reason}): check the address.") from None
            except (OSError, http.client.HTTPException) as error:
                # URLError is an OSError.
                reason = reason_of(error)
                if "CERTIFICATE_VERIFY_FAILED" in reason:
                    raise Failure(f"{url} cannot be fetched ({reason}): mend this system's certificates.") from None
            fruitless = 0 if size_of(partial) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                kept = ", which goes on where it stopped" if size_of(partial) else ""
                raise Failure(f"{url} cannot be fetched ({reason}): check the network and run this again{kept}.")
            progress.end()
            say(f"{file.name}: {reason}; trying again.")
            time.sleep(2 ** max(fruitless - 1, 0))
    finally:
        progress.end()


def fetch(file, url, folder, room):
    """Downloads an address into a folder and checks it; returns the path. Raises Absent, Mismatch or Failure."""
    path = os.path.join(folder, file.name)
    if os.path.exists(path):  # An earlier run got this far.
        try:
            check(file, path)
            return path
        except Mismatch:
            os.remove(path)
    partial = path + ".partial"
    # An archive may be larger than what is taken out of it.
    most = max(room, file.bytes or 0)
    while True:
        resumed = size_of(partial) > 0
        try:
            download(file, url, partial, most)
            check(file, partial)
        except Mismatch:
            if os.path.exists(partial):
                os.remove(partial)
            # What was there before may have been of another file.
            if not resumed:
                raise
        else:
            os.replace(partial, path)
            return path


# ---- Where the files of a set are found ------------------------------------------------------------------------------


def from_official(dataset, folder):
    """Downloads the official files: (source, [(File, path, where it is from)])."""
    found = []
    for file in dataset.files_of(OFFICIAL):
        for address in dataset.addresses:
            url = address + urllib.parse.quote(file.name)
            try:
                found.append((file, fetch(file, url, folder, dataset.room), url))
                break
            except Absent as absent:
                problem = Failure(f"{url} is no longer there ({absent}): bring {file.name} with --mirror.")
            except Mismatch as mismatch:
                problem = Failure(
                    f"{url} is not the file that scripts/data.lock pins ({mismatch}): the download is damaged or was "
                    "changed, so try again, or bring it with --mirror."
                )
            except Failure as failure:
                problem = failure
            if address == dataset.addresses[-1]:
                raise problem
            say(f"{url} did not serve; trying another address.")
    return OFFICIAL, found


def candidates(dataset, file):
    """Where a mirror may hold a file, relative to it."""
    paths = [f"{dataset.name}/{file.name}", file.name, file.path]
    if file.may_be_plain:
        paths += [path[: -len(".gz")] for path in paths]
    return list(dict.fromkeys(paths))


def from_folder(dataset, file, mirror):
    """The path of a file in a mirror that is a folder, twice. Raises Absent or InputError."""
    problem = None
    for candidate in candidates(dataset, file):
        path = os.path.join(mirror, candidate)
        if os.path.isfile(path):
            try:
                check(file, path)
                return path, path
            except Mismatch as mismatch:
                problem = problem or InputError(
                    f"{path} is not the {file.name} that scripts/data.lock pins ({mismatch}): bring the right one."
                )
    raise problem or Absent()


def from_address(dataset, file, mirror, folder):
    """Downloads a file from a mirror that is an address: (path, URL). Raises Absent or Failure."""
    problem = None
    for candidate in candidates(dataset, file):
        url = f"{mirror.rstrip('/')}/{urllib.parse.quote(candidate)}"
        try:
            return fetch(file, url, folder, dataset.room), url
        except Absent:
            pass
        except Mismatch as mismatch:
            problem = problem or Failure(
                f"{url} is not the {file.name} that scripts/data.lock pins ({mismatch}): bring the right one there."
            )
    raise problem or Absent()


def is_address(mirror):
    return mirror.startswith(("http://", "https://"))


def from_mirror(dataset, mirror, folder):
    """The first source that a mirror holds whole: (source, [(File, path, where it is from)])."""
    problem = None
    lacking = (-1, "")  # how many files were found before the one that is lacking
    for source in dataset.sources():
        found = []
        try:
            for file in dataset.files_of(source):
                if is_address(mirror):
                    path, origin = from_address(dataset, file, mirror, folder)
                else:
                    path, origin = from_folder(dataset, file, mirror)
                found.append((file, path, origin))
            return source, found
        except Absent:
            if len(found) > lacking[0]:
                lacking = len(found), file.name
        except (InputError, Failure) as error:
            problem = problem or error
    raise problem or InputError(
        f"the mirror {mirror} does not hold {lacking[1]}, which {dataset.name} needs: put it there or into "
        f"{dataset.name}/ there, or leave out --mirror."
    )


# ---- Laying out ------------------------------------------------------------------------------------------------------


class Room:
    """Writes files and refuses to write more than a set may take."""

    def __init__(self, most):
        self.most = most
        self.left = most

    def write(self, stream, target, origin):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            output = open(target, "xb")
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise BadArchive(f"{origin} holds {os.path.basename(target)} twice: bring the right one.") from None
        with output:
            while piece := stream.read(PIECE):
                self.left -= len(piece)
                if self.left < 0:
                    raise BadArchive(
                        f"{origin} holds more than the {self.most} bytes that are expected: bring the right one."
                    )
                output.write(piece)


def member_target(name, origin):
    """The path of an archive's member below the set's folder: without the outermost folder, and never outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise BadArchive(f"{origin} holds a member that would be written elsewhere ({name!r}): bring the right one.")
    return os.path.join(*parts[1:]) if len(parts) > 1 else None


def members(path):
    """The members of a zip or tar archive: (name, kind, function that opens it), kind being file, folder or another."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                mode = member.external_attr >> 16
                odd = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = "other" if odd else "folder" if member.is_dir() else "file"
                yield member.filename, kind, lambda member=member: archive.open(member)
    else:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                kind = "file" if member.isreg() else "folder" if member.isdir() else "other"
                yield member.name, kind, lambda member=member: archive.extractfile(member)


def unpack(file, path, origin, folder, room):
    """Unpacks the members of an archive that the lock file asks for."""
    say(f"unpacking {file.name}.")
    missing = set(file.arguments)
    try:
        for name, kind, open_member in members(path):
            name = name[2:] if name.startswith("./") else name
            if kind == "folder" or not wanted(name, file.arguments):
                continue
            if kind == "other":
                raise BadArchive(f"{origin} holds a link or a device ({name!r}), which no official archive does.")
            target = member_target(name, origin)
            if target:
                with open_member() as stream:
                    room.write(stream, os.path.join(folder, target), origin)
                missing = {pattern for pattern in missing if not wanted(name, [pattern])}
    except (*DAMAGED, RuntimeError) as error:  # RuntimeError: an encrypted zip file
        raise BadArchive(f"{origin} is damaged or no archive ({error}): bring the right one.") from None
    if missing:
        raise BadArchive(f"{origin} holds no {min(missing)}: bring the right one.")


def place(file, path, origin, folder, room):
    """Makes of a file what belongs into the set's folder."""
    if file.form == "unpack":
        unpack(file, path, origin, folder, room)
        return
    zipped = is_gzip(path)
    name = file.arguments[0] if file.arguments else file.name
    if name.endswith(".gz") and (file.form == "gunzip" or not zipped):
        name = name[: -len(".gz")]
    try:
        with gzip.open(path) if file.form == "gunzip" and zipped else open(path, "rb") as stream:
            room.write(stream, os.path.join(folder, name), origin)
    except DAMAGED as error:
        raise BadArchive(f"{origin} is damaged ({error}): bring the right one.") from None


def files_below(folder):
    """The files of a folder with their sizes, by relative path."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


def read_record(folder):
    """What an earlier run wrote about the set that it made; None if there is no record."""
    try:
        with open(os.path.join(folder, RECORD), encoding="utf-8") as file:
            record = json.load(file)
        return record if isinstance(record["files"], dict) and record["pinned"] and record["from"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_complete(folder, record, dataset):
    """Whether the set is there as its record says, made by the present lock file."""
    if record is None or record["pinned"] != dataset.pinned():
        return False
    try:
        return all(os.stat(os.path.join(folder, path)).st_size == size for path, size in record["files"].items())
    except OSError:
        return False


def refuse_foreign(folder, shown):
    """A set that is incomplete is replaced, but nothing that somebody else put there is deleted."""
    if not os.path.lexists(folder):
        return
    record = read_record(folder)
    known = {RECORD, *(record["files"] if record else ())}
    foreign = sorted(set(files_below(folder)) - known)
    if foreign or not os.path.isdir(folder):
        what = f"holds {foreign[0]}, which is not of this script's making" if foreign else "is no folder"
        raise InputError(f"{shown} {what}: move it away, or give another folder with --out.")


class Stage:
    """The folder beside the set's in which it is made, for one process at a time.

    What is downloaded stays in it if the run fails or is interrupted, so that the next one goes on from there.
    """

    def __init__(self, folder, name):
        self.final = folder
        self.name = name
        self.path = folder + ".partial"
        self.downloads = os.path.join(self.path, "download")
        self.made = os.path.join(self.path, "made")
        self.replaced = os.path.join(self.path, "replaced")

    def __enter__(self):
        while True:
            os.makedirs(self.downloads, exist_ok=True)
            lock = os.path.join(self.path, "lock")
            self.lock = open(lock, "a")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.lock.close()
                raise Failure(f"another run is fetching {self.name}: wait until it has ended.") from None
            # The other run may have ended, and removed the folder, between the two calls.
            if os.path.exists(lock) and os.path.samestat(os.stat(lock), os.fstat(self.lock.fileno())):
                break
            self.lock.close()
        self.restore()
        shutil.rmtree(self.made, ignore_errors=True)
        os.mkdir(self.made)
        return self

    def restore(self):
        """A run that was killed between the two renames of put_in_place: the former set goes back."""
        if os.path.lexists(self.replaced) and not os.path.lexists(self.final):
            os.rename(self.replaced, self.final)

    def put_in_place(self):
        """The only moment in which the set's folder changes."""
        if os.path.lexists(self.final):
            os.rename(self.final, self.replaced)
        os.rename(self.made, self.final)
        shutil.rmtree(self.path)

    def __exit__(self, *_):
        if os.path.exists(self.path):
            self.restore()
            shutil.rmtree(self.made, ignore_errors=True)
            if not any(files_below(self.downloads).values()):
                shutil.rmtree(self.path)
        self.lock.close()


def require_space(dataset, out, mirror):
    """Before anything is written."""
    downloads = 0 if mirror and not is_address(mirror) else sum(file.bytes or 0 for file in dataset.files_of(OFFICIAL))
    free = shutil.disk_usage(out).free
    if dataset.room + downloads > free:
        needed, free = size_text(dataset.room + downloads), size_text(free)
        raise InputError(f"{dataset.name} needs {needed} and only {free} are free where {out} is: make room.")


def fetch_set(dataset, out, mirror):
    start = time.monotonic()
    folder = os.path.join(out, dataset.name)
    shown = os.path.relpath(folder)
    if shown.startswith(".."):
        shown = folder
    record = read_record(folder)
    if is_complete(folder, record, dataset):
        say(f"{dataset.name} is already in {shown} (from {record['from']}).")
        return
    created = not os.path.isdir(out)
    try:
        with Stage(folder, dataset.name) as stage:
            refuse_foreign(folder, shown)
            require_space(dataset, out, mirror)
            if mirror:
                source, found = from_mirror(dataset, mirror, stage.downloads)
            else:
                source, found = from_official(dataset, stage.downloads)
            room = Room(dataset.room)
            try:
                for file, path, origin in found:
                    place(file, path, origin, stage.made, room)
            except BadArchive:
                # It is of no use to a next run.
                shutil.rmtree(stage.downloads)
                raise
            files = files_below(stage.made)
            record = {
                "set": dataset.name,
                "source": source,
                "from": mirror or "the official address",
                "fetched": {file.name: file_digest(path) for file, path, _ in found},
                "files": files,
                "pinned": dataset.pinned(),
            }
            with open(os.path.join(stage.made, RECORD), "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1, sort_keys=True)
            stage.put_in_place()
    finally:
        if created and os.path.isdir(out) and not os.listdir(out):
            os.rmdir(out)
    if source in dataset.notes:
        say(f"{dataset.name}: {dataset.notes[source]}.")
    count = f"{len(files)} files" if len(files) != 1 else "1 file"
    seconds = f"{time.monotonic() - start:.0f} s"
    say(f"{dataset.name} is ready in {shown} ({count}, {size_text(sum(files.values()))}, {seconds}).")


def main(arguments):
    verb, lock, *rest = arguments
    sets = read_lock(lock)
    if verb == "list":
        list_sets(sets)
        return
    out, mirror, *names = rest
    for name in names:
        if name not in sets:
            near = difflib.get_close_matches(name.lower(), sets, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "--list shows what there is."
            raise InputError(f"there is no data set '{name}': {hint}")
    if mirror and not is_address(mirror):
        if not os.path.isdir(mirror):
            raise InputError(
                f"--mirror names {mirror}, which is no folder: correct it (an address begins with http:// or https://)."
            )
        mirror = os.path.abspath(mirror)
    out = os.path.abspath(out)
    for name in dict.fromkeys(names):
        fetch_set(sets[name], out, mirror)


def end(status, sentence):
    print(f"fetch_data.sh: {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(sys.argv[1:])
    except (InputError, BadArchive) as error:
        end(2, error)
    except Failure as error:
        end(1, error)
    except OSError as error:
        what = error.filename or "a file"
        end(1, f"{what} could not be read or written ({error.strerror or error}): mend it and run this again.")
    except KeyboardInterrupt:
        end(130, "interrupted; the next run goes on with what has arrived.")
