//! The bytes of a table file in chunks that end with a line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Result, anyhow};
use flate2::read::MultiGzDecoder;

use crate::{bad_input, bail_input, files};

/// Bytes of a chunk: large enough that handing it over costs nothing, small enough that its values stay in a processor's cache.
const CHUNK: usize = 1 << 20;
/// A single line longer than this is no table.
const LONGEST_LINE: usize = 1 << 28;

/// Opens a file, or stdin for `-`. Gzip is recognised by its first bytes; a byte-order mark is left out.
///
/// # Errors
/// The file cannot be opened, or is text in UTF-16.
pub fn open_bytes(path: &Path) -> Result<Box<dyn Read + Send>> {
    let plain: Box<dyn Read + Send> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false if path.is_dir() => bail_input!("{} is a folder, not a file", path.display()),
        false => Box::new(File::open(path).map_err(|error| files::cannot_read(path, &error))?),
    };
    let (start, rest) = look(plain, 2).map_err(|error| files::cannot_read(path, &error))?;
    let packed = start.starts_with(&[0x1f, 0x8b]);
    let unpacked: Box<dyn Read + Send> = match packed {
        true => Box::new(MultiGzDecoder::new(io::Cursor::new(start).chain(rest))),
        false => Box::new(io::Cursor::new(start).chain(rest)),
    };
    let (mut start, rest) = look(unpacked, 3).map_err(|error| match packed {
        true => bad_input!("{} is a damaged gzip file: {error}", path.display()),
        false => files::cannot_read(path, &error),
    })?;
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        bail_input!("{} is text in UTF-16: save it as UTF-8", path.display());
    }
    if start.starts_with(&[0xef, 0xbb, 0xbf]) {
        start.clear();
    }
    Ok(Box::new(io::Cursor::new(start).chain(rest)))
}

/// The first bytes of a reader, fewer where it ends before, and the rest of it.
fn look(mut reader: Box<dyn Read + Send>, count: usize) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut start = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match reader.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    start.truncate(filled);
    Ok((start, reader))
}

/// Cuts a stream of bytes into chunks of whole lines.
pub(super) struct Chunks {
    reader: Box<dyn Read + Send>,
    /// Read and not yet handed out.
    pending: Vec<u8>,
    quoted: bool,
    ended: bool,
    next: usize,
    name: String,
}

impl Chunks {
    /// Chunks of a reader; the name is for messages.
    pub fn new(reader: Box<dyn Read + Send>, name: &str) -> Self {
        Self { reader, pending: Vec::new(), quoted: false, ended: false, next: 0, name: name.to_owned() }
    }

    /// The beginning of what is left, at least `wanted` bytes unless the stream is shorter.
    pub fn peek(&mut self, wanted: usize) -> Result<&[u8]> {
        while self.pending.len() < wanted && !self.ended {
            self.read_more()?;
        }
        Ok(&self.pending)
    }

    /// Whether all of the stream has been read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Drops bytes that were peeked at.
    pub fn skip(&mut self, count: usize) {
        self.pending.drain(..count);
    }

    /// Whether a line end between double quotes is part of a field.
    pub fn set_quoted(&mut self, quoted: bool) {
        self.quoted = quoted;
    }

    /// Fills `chunk` with the next whole lines and returns its number; `None` at the end.
    pub fn next(&mut self, chunk: &mut Vec<u8>) -> Result<Option<usize>> {
        let mut wanted = CHUNK;
        let end = loop {
            self.peek(wanted)?;
            if self.pending.is_empty() {
                return Ok(None);
            }
            if self.ended && self.pending.len() <= wanted {
                break self.pending.len();
            }
            match self.last_line_end(wanted.min(self.pending.len())) {
                Some(end) => break end + 1,
                None if wanted > LONGEST_LINE => {
                    bail_input!("{} has a line of more than {LONGEST_LINE} bytes: is it a table?", self.name)
                }
                None => wanted *= 2,
            }
        };
        chunk.clear();
        chunk.extend_from_slice(&self.pending[..end]);
        self.pending.drain(..end);
        self.next += 1;
        Ok(Some(self.next - 1))
    }

    /// The last line end outside quotes. A chunk begins outside quotes, and doubled quotes inside a field keep the parity.
    fn last_line_end(&self, end: usize) -> Option<usize> {
        let bytes = &self.pending[..end];
        if !self.quoted || memchr::memchr(b'"', bytes).is_none() {
            return memchr::memrchr(b'\n', bytes);
        }
        let (mut last, mut start, mut inside) = (None, 0, false);
        for quote in memchr::memchr_iter(b'"', bytes).chain(std::iter::once(bytes.len())) {
            if !inside && let Some(found) = memchr::memrchr(b'\n', &bytes[start..quote]) {
                last = Some(start + found);
            }
            start = quote;
            inside = !inside;
        }
        last
    }

    fn read_more(&mut self) -> Result<()> {
        let start = self.pending.len();
        self.pending.resize(start + CHUNK, 0);
        let read = loop {
            match self.reader.read(&mut self.pending[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let count = match read {
            Ok(count) => count,
            // A gzip stream that is cut off or damaged is the file's fault.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
                ) =>
            {
                bail_input!("{} is a damaged gzip file: {error}", self.name)
            }
            Err(error) => return Err(anyhow!("cannot read {}: {error}", self.name)),
        };
        self.pending.truncate(start + count);
        self.ended = count == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_with_a_line_outside_quotes() -> Result<()> {
        let mut text = String::new();
        for row in 0..200_000 {
            text.push_str(&format!("{row},\"a\nb \"\"{row}\"\"\"\n"));
        }
        let mut chunks = Chunks::new(Box::new(io::Cursor::new(text.clone().into_bytes())), "t");
        chunks.set_quoted(true);
        let (mut all, mut chunk, mut count) = (Vec::new(), Vec::new(), 0);
        while let Some(number) = chunks.next(&mut chunk)? {
            assert_eq!(number, count);
            assert!(chunk.ends_with(b"\"\n"), "a chunk ends within a field");
            all.extend_from_slice(&chunk);
            count += 1;
        }
        assert!(count > 1);
        assert_eq!(all, text.into_bytes());
        Ok(())
    }
}
