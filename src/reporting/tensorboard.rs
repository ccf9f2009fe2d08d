//! TensorBoard event files.
//!
//! A file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data; little endian), each
//! holding an `Event` message. The messages below carry the field numbers of TensorFlow's `event.proto`, `summary.proto`,
//! `histogram.proto`, `tensor.proto` and `tensor_shape.proto`, as far as they are written here.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use prost::Message;

use super::images::png_size;
use super::metrics::Record;

/// What file names begin with; TensorBoard finds event files by it and reads them in the order of their names.
const PREFIX: &str = "events.out.tfevents.";
/// What the names of files end with that hold what is written once at the end of a run.
const END: &str = ".end";
/// From version 2 on, readers honour the mark of a restart.
const FILE_VERSION: &str = "brain.Event:2";

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(enumeration = "SessionStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum SessionStatus {
    Unspecified = 0,
    Start = 1,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 5, 8")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "5")]
    Histogram(Histogram),
    #[prost(message, tag = "8")]
    Tensor(StringTensor),
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(enumeration = "DataClass", tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
    /// The plugin's own message. Empty is its version 0, the only one there is.
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum DataClass {
    Unknown = 0,
    Tensor = 2,
    BlobSequence = 3,
}

/// `TensorProto` with strings in it.
#[derive(Clone, PartialEq, Message)]
struct StringTensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    values: Vec<Vec<u8>>,
}

/// `DT_STRING` of TensorFlow's `types.proto`.
const STRING: i32 = 7;

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// How often values fall into which range (`HistogramProto`).
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    count: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    /// Upper edges of the buckets.
    #[prost(double, repeated, tag = "6")]
    limits: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    counts: Vec<f64>,
}

impl Histogram {
    /// Counts values into TensorBoard's default buckets: edges from ±1e-12 to ±1e20, each 1.1 times the one before, and 0
    /// (TensorFlow's `histogram.cc`). Values that are not finite are left out.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Histogram {
        let edges = default_edges();
        let mut counts = vec![0.0; edges.len()];
        let mut histogram = Histogram { min: f64::INFINITY, max: f64::NEG_INFINITY, ..Histogram::default() };
        for value in values.into_iter().filter(|value| value.is_finite()) {
            // The last edge is the largest finite number: only that number itself is not below any.
            let bucket = edges.partition_point(|edge| *edge <= value).min(edges.len() - 1);
            counts[bucket] += 1.0;
            histogram.min = histogram.min.min(value);
            histogram.max = histogram.max.max(value);
            histogram.count += 1.0;
            histogram.sum += value;
            histogram.sum_squares += value * value;
        }
        if histogram.count == 0.0 {
            return Histogram::default();
        }
        // Of a run of empty buckets only the last edge is written: it is where the next one begins.
        for (index, (edge, count)) in edges.iter().zip(&counts).enumerate() {
            let runs_on = counts.get(index + 1) == Some(&0.0);
            if *count > 0.0 || !runs_on {
                histogram.limits.push(*edge);
                histogram.counts.push(*count);
            }
        }
        histogram
    }

    /// From counts made elsewhere. `edges` are ascending, one more than `counts`; `sum` and `sum_squares` are those of the values
    /// counted.
    pub fn from_counts(edges: &[f64], counts: &[f64], sum: f64, sum_squares: f64) -> Result<Histogram> {
        if edges.len() != counts.len() + 1 {
            bail!("{} counts need {} edges, not {}", counts.len(), counts.len() + 1, edges.len());
        }
        if !edges.iter().all(|edge| edge.is_finite()) || !edges.is_sorted_by(|left, right| left < right) {
            bail!("the edges of a histogram are finite and ascending");
        }
        if !counts.iter().all(|count| count.is_finite() && *count >= 0.0) {
            bail!("the counts of a histogram are finite and not negative");
        }
        let (Some(first), Some(last)) =
            (counts.iter().position(|count| *count > 0.0), counts.iter().rposition(|count| *count > 0.0))
        else {
            return Ok(Histogram::default());
        };
        // Readers take the smallest value as the first bucket's lower edge, and the largest as the last one's upper edge.
        Ok(Histogram {
            min: edges[first],
            max: edges[last + 1],
            count: counts.iter().sum(),
            sum,
            sum_squares,
            limits: edges[first + 1..=last + 1].to_vec(),
            counts: counts[first..=last].to_vec(),
        })
    }
}

fn default_edges() -> Vec<f64> {
    let mut positive: Vec<f64> =
        std::iter::successors(Some(1e-12), |edge| Some(edge * 1.1)).take_while(|edge| *edge < 1e20).collect();
    positive.push(f64::MAX);
    positive.iter().rev().map(|edge| -edge).chain([0.0]).chain(positive.iter().copied()).collect()
}

/// Writes an event file.
///
/// Values wait in a buffer until [`EventWriter::flush`], which the end of a writer's life calls too.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Makes the folder, where it is missing, and a new event file in it.
    pub fn create(folder: &Path) -> Result<EventWriter> {
        EventWriter::open(folder, 0, "")
    }

    /// Goes on behind step `last_step`: a new file which makes readers drop every event of a later step that earlier files hold.
    pub fn resume(folder: &Path, last_step: u64) -> Result<EventWriter> {
        EventWriter::open(folder, last_step as i64 + 1, "")
    }

    /// A file for what is written once at the end of a run of `last_step` steps, about whichever of them. It takes the place of an earlier
    /// one, and goes when the run is continued, since another end will come.
    pub fn conclude(folder: &Path, last_step: u64) -> Result<EventWriter> {
        EventWriter::open(folder, last_step as i64 + 1, END)
    }

    fn open(folder: &Path, first_step: i64, ending: &str) -> Result<EventWriter> {
        let context = || format!("cannot make an event file in {}", folder.display());
        std::fs::create_dir_all(folder).with_context(context)?;
        let mut latest = 0;
        for entry in std::fs::read_dir(folder).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            if rest.ends_with(END) {
                std::fs::remove_file(entry.path()).with_context(context)?;
            }
            let seconds = rest.split('.').next();
            latest = latest.max(seconds.and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or(0));
        }
        // Readers go by the names' order, so the name is later than all others even within a second or after the clock was set back.
        let mut seconds = (now() as u64).max(latest + 1);
        let host = host_name();
        let (file, path) = loop {
            let path = folder.join(format!("{PREFIX}{seconds:010}.{host}.{}{ending}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(error).with_context(context),
            }
        };
        let mut writer = EventWriter { file: BufWriter::new(file), path };
        writer.event(0, What::FileVersion(FILE_VERSION.to_string()))?;
        // Readers take the first start that they see for the beginning and every later one for a restart, so that the first file
        // needs one as well.
        writer.event(first_step, What::SessionLog(SessionLog { status: SessionStatus::Start as i32 }))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Writes a number.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.summary(step, vec![scalar(tag.to_string(), value)])
    }

    /// Writes every metric of a record as a scalar `<metric>/<split>`, so that the splits of a metric stand together.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        let values = record
            .values
            .iter()
            .map(|(name, value)| scalar(format!("{name}/{}", record.split), *value))
            .collect();
        self.summary(record.step, values)
    }

    /// Writes a histogram.
    pub fn histogram(&mut self, tag: &str, step: u64, histogram: &Histogram) -> Result<()> {
        let content = Some(Content::Histogram(histogram.clone()));
        self.summary(step, vec![Value { tag: tag.to_string(), metadata: None, content }])
    }

    /// Writes PNG images of one size, shown side by side.
    pub fn images(&mut self, tag: &str, step: u64, pngs: &[Vec<u8>]) -> Result<()> {
        let sizes: Option<Vec<_>> = pngs.iter().map(|png| png_size(png)).collect();
        let size = match sizes.as_deref() {
            None => bail!("an image for the event file is no PNG"),
            Some([]) => return Ok(()),
            Some([size, rest @ ..]) if rest.iter().all(|other| other == size) => *size,
            Some(_) => bail!("the images of one step in the event file differ in size"),
        };
        // The images plugin's form: width, height, then the files.
        let values = [size.1.to_string().into_bytes(), size.0.to_string().into_bytes()]
            .into_iter()
            .chain(pngs.iter().cloned());
        self.summary(step, vec![strings(tag, "images", DataClass::BlobSequence, values.collect())])
    }

    /// Writes text, in Markdown.
    pub fn text(&mut self, tag: &str, step: u64, markdown: &str) -> Result<()> {
        self.summary(step, vec![strings(tag, "text", DataClass::Tensor, vec![markdown.as_bytes().to_vec()])])
    }

    /// Hands everything to the operating system, so that readers see it.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Waits until the file's content is on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file
            .get_ref()
            .sync_data()
            .with_context(|| format!("cannot write {} to the disk", self.path.display()))
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        self.event(step as i64, What::Summary(Summary { value }))
    }

    fn event(&mut self, step: i64, what: What) -> Result<()> {
        let data = Event { wall_time: now(), step, what: Some(what) }.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let frame = [&length[..], &masked_crc(&length), &data, &masked_crc(&data)].concat();
        self.file.write_all(&frame).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn scalar(tag: String, value: f64) -> Value {
    Value { tag, metadata: None, content: Some(Content::SimpleValue(value as f32)) }
}

/// A vector of strings for one of TensorBoard's plugins.
fn strings(tag: &str, plugin: &str, class: DataClass, values: Vec<Vec<u8>>) -> Value {
    let plugin_data = Some(PluginData { plugin_name: plugin.to_string(), content: Vec::new() });
    let shape = Some(Shape { dim: vec![Dimension { size: values.len() as i64 }] });
    Value {
        tag: tag.to_string(),
        metadata: Some(Metadata { plugin_data, data_class: class as i32 }),
        content: Some(Content::Tensor(StringTensor { dtype: STRING, shape, values })),
    }
}

/// The checksum as TFRecords hold it: rotated and shifted, so that a checksum over data with checksums in it stays meaningful.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The machine's name, in letters that a file name and its dots can hold.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let name: String =
        name.trim().chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    if name.is_empty() { "localhost".to_string() } else { name }
}

#[cfg(test)]
mod tests {
    use super::super::images::png;
    use super::super::metrics::Split;
    use super::super::testing::Scratch;
    use super::*;

    /// The events of a file, with lengths and checksums checked.
    fn events(path: &Path) -> Result<Vec<Event>> {
        let bytes = std::fs::read(path)?;
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            assert_eq!(after[..4], masked_crc(length));
            let (data, after) = after[4..].split_at(u64::from_le_bytes(length.try_into()?) as usize);
            assert_eq!(after[..4], masked_crc(data));
            events.push(Event::decode(data)?);
            rest = &after[4..];
        }
        Ok(events)
    }

    fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let mut files =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }

    #[test]
    fn checksums_are_those_of_tfrecord() {
        // CRC-32C of 32 zero bytes is 8a9136aa (RFC 3720, B.4).
        assert_eq!(
            masked_crc(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
        );
        // Masked checksum of the length 24, as every file begins that TensorFlow writes: its version event is 24 bytes long.
        assert_eq!(masked_crc(&24_u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn a_file_begins_with_its_version_and_a_start() -> Result<()> {
        let scratch = Scratch::new("events")?;
        let mut writer = EventWriter::create(scratch.folder())?;
        let values = [("loss".to_string(), 0.5), ("lr".to_string(), 0.25)].into();
        writer.record(&Record { split: Split::Train, step: 7, epoch: 0.1, values })?;
        writer.sync()?;
        let [path] = &files(scratch.folder())?[..] else { panic!("one file is expected") };
        let events = events(path)?;
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_string())));
        assert_eq!((events[1].step, &events[1].what), (0, &Some(What::SessionLog(SessionLog { status: 1 }))));
        let Some(What::Summary(summary)) = &events[2].what else { panic!("a summary is expected") };
        assert_eq!(events[2].step, 7);
        assert_eq!(
            summary.value,
            [scalar("loss/train".to_string(), 0.5), scalar("lr/train".to_string(), 0.25)]
        );
        Ok(())
    }

    #[test]
    fn a_resumed_run_has_a_later_name_and_the_first_step_to_come() -> Result<()> {
        let scratch = Scratch::new("events-resume")?;
        drop(EventWriter::create(scratch.folder())?);
        // A file from a clock that went wrong.
        std::fs::write(scratch.path("events.out.tfevents.8999999999.other.1"), "")?;
        drop(EventWriter::resume(scratch.folder(), 41)?);
        let files = files(scratch.folder())?;
        assert_eq!(files.len(), 3);
        let name = files[2].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.9000000000."), "{name}");
        assert_eq!(events(&files[2])?[1].step, 42);
        Ok(())
    }

    #[test]
    fn the_end_of_a_run_is_written_anew_and_goes_when_it_is_continued() -> Result<()> {
        let scratch = Scratch::new("events-end")?;
        drop(EventWriter::create(scratch.folder())?);
        let ends = || -> Result<usize> {
            Ok(files(scratch.folder())?.iter().filter(|path| path.to_string_lossy().ends_with(END)).count())
        };
        for _ in 0..2 {
            EventWriter::conclude(scratch.folder(), 40)?.scalar("loss/test", 30, 0.5)?;
            assert_eq!((files(scratch.folder())?.len(), ends()?), (2, 1));
        }
        let written = events(&files(scratch.folder())?[1])?;
        assert_eq!((written[1].step, written[2].step), (41, 30));
        drop(EventWriter::resume(scratch.folder(), 40)?);
        assert_eq!((files(scratch.folder())?.len(), ends()?), (2, 0));
        Ok(())
    }

    #[test]
    fn default_buckets_hold_every_finite_value() {
        let values =
            [-1e30, -2.0, -1e-13, 0.0, 0.0, 1e-13, 1.0, 1.0, 1.05, f64::MAX, f64::NAN, f64::INFINITY];
        let histogram = Histogram::of(values);
        assert_eq!((histogram.count, histogram.min, histogram.max), (10.0, -1e30, f64::MAX));
        assert_eq!(histogram.counts.iter().sum::<f64>(), 10.0);
        assert_eq!(histogram.limits.len(), histogram.counts.len());
        assert!(histogram.limits.is_sorted_by(|left, right| left < right));
        // Every bucket's values lie in [the limit before, its limit).
        for (index, limit) in histogram.limits.iter().enumerate() {
            let lower = if index == 0 { f64::NEG_INFINITY } else { histogram.limits[index - 1] };
            let inside = values.iter().filter(|value| {
                **value >= lower && (**value < *limit || *limit == f64::MAX) && value.is_finite()
            });
            assert_eq!(inside.count() as f64, histogram.counts[index], "up to {limit}");
        }
        assert_eq!(default_edges().len(), 2 * 775 + 1);
        assert_eq!(Histogram::of([f64::NAN]), Histogram::default());
    }

    #[test]
    fn given_counts_keep_their_edges() -> Result<()> {
        let histogram = Histogram::from_counts(&[0.0, 1.0, 2.0, 3.0, 4.0], &[0.0, 2.0, 3.0, 0.0], 9.0, 17.0)?;
        assert_eq!((histogram.min, histogram.max, histogram.count), (1.0, 3.0, 5.0));
        assert_eq!((histogram.limits, histogram.counts), (vec![2.0, 3.0], vec![2.0, 3.0]));
        assert_eq!(Histogram::from_counts(&[0.0, 1.0], &[0.0], 0.0, 0.0)?, Histogram::default());
        assert!(Histogram::from_counts(&[0.0, 1.0], &[1.0, 2.0], 0.0, 0.0).is_err());
        assert!(Histogram::from_counts(&[0.0, 0.0], &[1.0], 0.0, 0.0).is_err());
        assert!(Histogram::from_counts(&[0.0, 1.0], &[-1.0], 0.0, 0.0).is_err());
        Ok(())
    }

    #[test]
    fn images_are_png_of_one_size() -> Result<()> {
        let scratch = Scratch::new("events-images")?;
        let mut writer = EventWriter::create(scratch.folder())?;
        let picture = |width: u32| png(&vec![9; 2 * width as usize], 2, width, image::ExtendedColorType::L8);
        assert!(writer.images("x", 1, &[picture(3)?, picture(4)?]).is_err());
        assert!(writer.images("x", 1, &[b"GIF89a".to_vec()]).is_err());
        writer.images("x", 1, &[])?;
        writer.images("x", 1, &[picture(3)?, picture(3)?])?;
        writer.flush()?;
        let events = events(&files(scratch.folder())?[0])?;
        let Some(What::Summary(summary)) = &events[2].what else { panic!("a summary is expected") };
        let Some(Content::Tensor(tensor)) = &summary.value[0].content else { panic!("a tensor is expected") };
        assert_eq!(
            (&tensor.values[0][..], &tensor.values[1][..], tensor.values.len()),
            (&b"3"[..], &b"2"[..], 4)
        );
        Ok(())
    }
}
