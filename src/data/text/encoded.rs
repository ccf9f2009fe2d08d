//! Tokens at two or four bytes each, in memory or mapped from a file.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::native::file_map::FileMap;
use crate::{bail_input, files};

/// Texts of more bytes than this are encoded into a file that is mapped, not into memory.
pub const IN_MEMORY: u64 = 256 << 20;

/// First bytes of a file of tokens; then the bytes of a token and the number of tokens as little-endian u64, then the tokens, little-endian.
const MAGIC: &[u8; 8] = b"tchtok01";
const HEADER: usize = 24;

/// Token numbers in a row. Clones and slices share the memory.
#[derive(Clone, Debug)]
pub struct Tokens {
    storage: Arc<Storage>,
    range: Range<usize>,
}

#[derive(Debug)]
enum Storage {
    Two(Vec<u16>),
    Four(Vec<u32>),
    File { map: FileMap, width: usize },
}

impl Tokens {
    /// Maps a file that [`TokenFileWriter`] wrote.
    ///
    /// # Errors
    /// It is no such file, or not whole.
    pub fn open(path: &Path) -> Result<Self> {
        let map = FileMap::open(path)?;
        let number = |at: usize| map.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (Some(width @ (2 | 4)), Some(count), true) = (number(8), number(16), map.starts_with(MAGIC))
        else {
            bail_input!("{} is no file of tokens", path.display());
        };
        if count.checked_mul(width).and_then(|bytes| bytes.checked_add(HEADER as u64))
            != Some(map.len() as u64)
        {
            bail_input!("{} is cut off: remove it, and it will be made again", path.display());
        }
        Ok(Self { range: 0..count as usize, storage: Arc::new(Storage::File { map, width: width as usize }) })
    }

    /// These tokens, in memory.
    pub fn of(ids: &[i64]) -> Self {
        let tokens: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        Self { range: 0..tokens.len(), storage: Arc::new(Storage::Four(tokens)) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part, sharing the memory.
    pub fn slice(&self, part: Range<usize>) -> Tokens {
        let range = self.range.start + part.start..self.range.start + part.end;
        assert!(range.end <= self.range.end, "a slice beyond the tokens");
        Tokens { storage: self.storage.clone(), range }
    }

    /// Appends the tokens of a part.
    pub fn append_to(&self, part: Range<usize>, ids: &mut Vec<i64>) {
        let range = self.slice(part).range;
        match &*self.storage {
            Storage::Two(tokens) => ids.extend(tokens[range].iter().map(|&id| i64::from(id))),
            Storage::Four(tokens) => ids.extend(tokens[range].iter().map(|&id| i64::from(id))),
            Storage::File { map, width } => {
                let bytes = &map[HEADER + range.start * width..HEADER + range.end * width];
                match width {
                    2 => ids.extend(
                        bytes.chunks_exact(2).map(|pair| i64::from(u16::from_le_bytes([pair[0], pair[1]]))),
                    ),
                    _ => ids.extend(
                        bytes
                            .chunks_exact(4)
                            .map(|four| i64::from(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))),
                    ),
                }
            }
        }
    }

    /// The tokens of a part.
    pub fn ids(&self, part: Range<usize>) -> Vec<i64> {
        let mut ids = Vec::with_capacity(part.len());
        self.append_to(part, &mut ids);
        ids
    }

    /// All of them, as the crate numbers tokens.
    pub fn to_vec(&self) -> Vec<u32> {
        self.ids(0..self.len()).into_iter().map(|id| id as u32).collect()
    }

    /// CRC-32C of the tokens, whatever they are stored in.
    pub fn checksum(&self) -> u32 {
        const AT_A_TIME: usize = 1 << 16;
        let (mut sum, mut ids, mut bytes) =
            (0, Vec::with_capacity(AT_A_TIME), Vec::with_capacity(4 * AT_A_TIME));
        for start in (0..self.len()).step_by(AT_A_TIME) {
            ids.clear();
            bytes.clear();
            self.append_to(start..self.len().min(start + AT_A_TIME), &mut ids);
            bytes.extend(ids.iter().flat_map(|&id| (id as u32).to_le_bytes()));
            sum = crc32c::crc32c_append(sum, &bytes);
        }
        sum
    }
}

/// Tokens that are being collected in memory.
#[derive(Debug)]
pub enum TokenBuffer {
    /// Of a vocabulary that two bytes number.
    Two(Vec<u16>),
    /// Of a larger one.
    Four(Vec<u32>),
}

impl TokenBuffer {
    /// For the numbers of a vocabulary of that size.
    pub fn new(vocabulary_size: usize) -> Self {
        match vocabulary_size <= 1 << 16 {
            true => Self::Two(Vec::new()),
            false => Self::Four(Vec::new()),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Two(tokens) => tokens.len(),
            Self::Four(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends numbers of the vocabulary.
    pub fn extend(&mut self, ids: &[u32]) {
        match self {
            Self::Two(tokens) => tokens.extend(ids.iter().map(|&id| id as u16)),
            Self::Four(tokens) => tokens.extend_from_slice(ids),
        }
    }

    pub fn finish(self) -> Tokens {
        let range = 0..self.len();
        let storage = match self {
            Self::Two(tokens) => Storage::Two(tokens),
            Self::Four(tokens) => Storage::Four(tokens),
        };
        Tokens { storage: Arc::new(storage), range }
    }
}

/// Writes a file of tokens that may be larger than the memory. It has its name only once it is whole.
#[derive(Debug)]
pub struct TokenFileWriter {
    path: PathBuf,
    staged: PathBuf,
    file: BufWriter<File>,
    width: usize,
    count: u64,
}

impl TokenFileWriter {
    /// Begins a file; numbers below 65,536 take two bytes each, others four.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, vocabulary_size: usize) -> Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Two processes that encode the same text write two files; either takes its place whole.
        let staged = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let file = File::create(&staged).map_err(|error| files::cannot_write(path, &error))?;
        let width = if vocabulary_size <= 1 << 16 { 2 } else { 4 };
        let mut writer = Self { path: path.to_owned(), staged, file: BufWriter::new(file), width, count: 0 };
        writer.write(&[0; HEADER])?;
        Ok(writer)
    }

    /// Appends tokens.
    pub fn extend(&mut self, ids: &[u32]) -> Result<()> {
        self.count += ids.len() as u64;
        let bytes: Vec<u8> = match self.width {
            2 => ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect(),
            _ => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        };
        self.write(&bytes)
    }

    /// Puts the file in its place and maps it.
    pub fn finish(mut self) -> Result<Tokens> {
        let mut header = MAGIC.to_vec();
        header.extend((self.width as u64).to_le_bytes());
        header.extend(self.count.to_le_bytes());
        let written = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| std::fs::rename(&self.staged, &self.path));
        written.map_err(|error| files::cannot_write(&self.path, &error))?;
        Tokens::open(&self.path)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| files::cannot_write(&self.path, &error))
    }
}

impl Drop for TokenFileWriter {
    fn drop(&mut self) {
        // Gone already where the file was finished.
        let _ = std::fs::remove_file(&self.staged);
    }
}

/// Encoded texts one after the other.
#[derive(Debug)]
pub struct EncodedTexts {
    tokens: TokenBuffer,
    /// Behind the last token of each text.
    ends: Vec<usize>,
    /// The place in each sequence where its second text begins; its length where there is one text.
    seconds: Vec<u32>,
}

impl EncodedTexts {
    /// No texts yet, of a vocabulary of that size.
    pub fn new(vocabulary_size: usize) -> Self {
        Self { tokens: TokenBuffer::new(vocabulary_size), ends: Vec::new(), seconds: Vec::new() }
    }

    /// Appends a text whose second part begins at `second`.
    pub fn push(&mut self, ids: &[u32], second: usize) {
        self.tokens.extend(ids);
        self.ends.push(self.tokens.len());
        self.seconds.push(second as u32);
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens of a text.
    pub fn length(&self, text: usize) -> usize {
        self.range(text).len()
    }

    /// Tokens of each text, for [`LengthBuckets`](super::LengthBuckets).
    pub fn lengths(&self) -> Arc<[u32]> {
        (0..self.len()).map(|text| self.length(text) as u32).collect()
    }

    /// The tokens of a text.
    pub fn ids(&self, text: usize) -> Vec<i64> {
        match &self.tokens {
            TokenBuffer::Two(tokens) => tokens[self.range(text)].iter().map(|&id| i64::from(id)).collect(),
            TokenBuffer::Four(tokens) => tokens[self.range(text)].iter().map(|&id| i64::from(id)).collect(),
        }
    }

    /// Where the second text of a pair begins (its segment is 1 from there on); the length of a single text.
    pub fn second_from(&self, text: usize) -> usize {
        self.seconds[text] as usize
    }

    /// All texts as one row of tokens.
    pub fn tokens(self) -> Tokens {
        self.tokens.finish()
    }

    fn range(&self, text: usize) -> Range<usize> {
        let start = if text == 0 { 0 } else { self.ends[text - 1] };
        start..self.ends[text]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_memory_hold_the_same_tokens() -> Result<()> {
        let path = std::env::temp_dir().join(format!("tch-suite-tokens-{}", std::process::id()));
        for (size, ids) in [(300, vec![0, 7, 299, 1]), (100_000, vec![0, 99_999, 65_536])] {
            let mut writer = TokenFileWriter::create(&path, size)?;
            let mut buffer = TokenBuffer::new(size);
            for id in &ids {
                writer.extend(&[*id])?;
                buffer.extend(&[*id]);
            }
            assert!(!path.exists() || size > 300, "not in its place before it is whole");
            let (mapped, held) = (writer.finish()?, buffer.finish());
            assert_eq!(mapped.to_vec(), ids);
            assert_eq!(held.to_vec(), ids);
            assert_eq!(mapped.checksum(), held.checksum());
            assert_eq!(mapped.slice(1..3).ids(1..2), [i64::from(ids[2])]);
        }
        let whole = std::fs::read(&path)?;
        std::fs::write(&path, &whole[..whole.len() - 1])?;
        assert!(Tokens::open(&path).unwrap_err().to_string().contains("cut off"));
        std::fs::write(&path, b"something else")?;
        assert!(Tokens::open(&path).unwrap_err().to_string().contains("is no file of tokens"));
        Ok(std::fs::remove_file(&path)?)
    }

    #[test]
    fn texts_keep_their_bounds() {
        let mut texts = EncodedTexts::new(10);
        texts.push(&[1, 2, 3], 3);
        texts.push(&[], 0);
        texts.push(&[4, 5], 1);
        assert_eq!(texts.lengths().to_vec(), [3, 0, 2]);
        assert_eq!((texts.ids(0), texts.ids(1), texts.ids(2)), (vec![1, 2, 3], vec![], vec![4, 5]));
        assert_eq!((texts.second_from(0), texts.second_from(2)), (3, 1));
        assert_eq!(texts.tokens().to_vec(), [1, 2, 3, 4, 5]);
    }
}
