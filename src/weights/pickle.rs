//! A reader of Python's pickles that runs nothing.
//!
//! A pickle is a program for a small stack machine (`pickletools` documents its opcodes, protocols 0 to 5), and two of its opcodes name and
//! call any function of Python. Here they only make inert records, and only for the names that `global` lists; any other name ends the
//! reading. All values live in one arena and refer to each other by number, so that neither depth nor cycles can overflow a stack or leak, and
//! their number is bounded.

use std::collections::HashMap;

use anyhow::{Result, anyhow};

use super::dtype::Dtype;
use crate::{bad_input, bail_input};

/// Values, on the stack or in the arena, that a pickle may make: an honest one makes about 15 for each tensor.
const MOST_VALUES: usize = 4_000_000;

/// A value of the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A name that Python would import.
    Global(Global),
    /// Anything larger: its place in the arena.
    Node(usize),
}

/// A value with parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `str`.
    Text(String),
    /// `bytes`, and whole numbers of more than 64 bits as Python writes them.
    Bytes(Vec<u8>),
    /// `tuple`, also `torch.Size`.
    Tuple(Vec<Value>),
    /// `list`, `set` and `frozenset`.
    List(Vec<Value>),
    /// `dict` and its relatives, in order.
    Dict(Vec<(Value, Value)>),
    /// A reference out of the pickle: where torch's files keep the numbers.
    Persistent(Value),
    /// What a function of [`Function`] was called with.
    Call(Function, Vec<Value>),
    /// An object of a class that means nothing here, with its state.
    Object {
        /// The class, where it is one of TorchScript's.
        class: Option<usize>,
        /// What `BUILD` gave it.
        state: Value,
    },
    /// A class of TorchScript, by name.
    Class(String),
}

/// A name that pickles of tensors import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// A class whose objects are dictionaries.
    Dict,
    /// `list`, `set`, `frozenset`, `tuple`.
    Sequence,
    /// `torch.Size`.
    Size,
    /// A storage with its type; `None` where it is untyped.
    Storage(Option<Dtype>),
    /// `torch.float32` and its relatives.
    Dtype(Dtype),
    /// A function that makes tensors.
    Function(Function),
    /// `_codecs.encode`, by which protocol 2 writes bytes.
    Encode,
    /// A function that returns its first argument.
    First,
    /// A class or function whose results are of no use here.
    Inert,
    /// A class of TorchScript: its name is in the arena.
    Script(usize),
}

/// The functions by which torch's pickles make tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `_rebuild_tensor(storage, offset, size, stride)` and `_v2` with more arguments that do not matter here.
    Tensor,
    /// `_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, …)`.
    UntypedTensor,
    /// `_rebuild_parameter(data, …)`.
    Parameter,
    /// `_rebuild_from_type_v2(function, type, arguments, state)`.
    FromType,
    /// `_rebuild_qtensor`, in modules only, of which other things can be read than weights.
    Quantised,
}

/// What a name stands for.
fn global(module: &str, name: &str) -> Option<Global> {
    let torch = || {
        let storage = Dtype::of_storage(name).map(|dtype| Global::Storage(Some(dtype)));
        storage.or_else(|| Dtype::by_name(name).map(Global::Dtype))
    };
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict" | "Counter") => Global::Dict,
        ("builtins" | "__builtin__", "dict") => Global::Dict,
        ("builtins" | "__builtin__", "list" | "tuple" | "set" | "frozenset") => Global::Sequence,
        (
            "builtins" | "__builtin__",
            "int" | "float" | "complex" | "bool" | "str" | "bytes" | "bytearray" | "object",
        ) => Global::Inert,
        ("copy_reg" | "copyreg", "_reconstructor") => Global::Inert,
        ("_codecs", "encode") => Global::Encode,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Function(Function::Tensor),
        ("torch._utils", "_rebuild_tensor_v3") => Global::Function(Function::UntypedTensor),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Global::Function(Function::Parameter)
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Global::Function(Function::FromType),
        ("torch", "Size") => Global::Size,
        ("torch", "device" | "Tensor") => Global::Inert,
        ("torch.nn.parameter", "Parameter" | "Buffer") => Global::Inert,
        ("torch.storage" | "torch", "UntypedStorage" | "_UntypedStorage") => Global::Storage(None),
        ("torch" | "torch.cuda", _) => torch()?,
        // What `jit.save` writes for lists and for values with a type.
        (
            "torch.jit._pickle",
            "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist" | "restore_type_tag",
        ) => Global::First,
        // Scores and seeds beside the weights.
        ("numpy", "dtype" | "ndarray") => Global::Inert,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct") => Global::Inert,
        ("pathlib", "Path" | "PosixPath" | "PurePath" | "PurePosixPath" | "WindowsPath") => Global::Inert,
        ("argparse", "Namespace") => Global::Inert,
        _ => return None,
    })
}

/// A pickle that was read: its values, and where it ended.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    /// The object that the pickle is of.
    pub root: Value,
    /// The first byte behind it.
    pub end: usize,
}

impl Pickle {
    /// The parts of a value that has some.
    pub fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(place) => self.nodes.get(place),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, value: Value) -> Option<&str> {
        match self.node(value) {
            Some(Node::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.node(value) {
            Some(Node::Tuple(values) | Node::List(values)) => Some(values),
            _ => None,
        }
    }

    /// The entries of a dictionary.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.node(value) {
            Some(Node::Dict(entries)) => Some(entries),
            _ => None,
        }
    }

    /// The references out of the pickle.
    pub fn references(&self) -> impl Iterator<Item = Value> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Persistent(reference) => Some(*reference),
            _ => None,
        })
    }

    /// How many quantised tensors there are.
    pub fn quantised(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node, Node::Call(Function::Quantised, _))).count()
    }

    /// The value of a key; of several the last, as in Python.
    pub fn get(&self, value: Value, key: &str) -> Option<Value> {
        self.dict(value)?
            .iter()
            .rev()
            .find(|(name, _)| self.text(*name) == Some(key))
            .map(|(_, value)| *value)
    }
}

/// Reads the pickle at the beginning of `bytes`. `scripts` allows classes of TorchScript, as records without behaviour. Messages are about
/// `name`.
///
/// # Errors
/// The pickle is damaged, too large, or imports a name that is not needed for tensors, which is then given.
pub fn read(name: &str, bytes: &[u8], scripts: bool) -> Result<Pickle> {
    let mut machine = Machine {
        name,
        bytes,
        at: 0,
        scripts,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root, end: machine.at })
}

struct Machine<'a> {
    name: &'a str,
    bytes: &'a [u8],
    at: usize,
    scripts: bool,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    /// Elements that calls have copied.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn damaged(&self, what: &str) -> anyhow::Error {
        bad_input!("{} is damaged: {what} at byte {} of its pickle", self.name, self.at)
    }

    fn run(&mut self) -> Result<Value> {
        loop {
            let held = self.nodes.len() + self.stack.len() + self.memo.len() + self.marks.len();
            if held + self.copied > MOST_VALUES {
                bail_input!(
                    "{}: its pickle makes more than {MOST_VALUES} values, which no weight file needs",
                    self.name
                );
            }
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => return self.pop(),
                0x80 => {
                    let protocol = self.take(1)?[0];
                    if protocol > 5 {
                        bail_input!("{} has pickle protocol {protocol}: 0 to 5 are known", self.name);
                    }
                }
                // A frame's length helps readers of streams only.
                0x95 => {
                    self.take(8)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    // A mark on top is popped like a value.
                    match self.marks.last() {
                        Some(&mark) if mark == self.stack.len() => {
                            self.marks.pop();
                        }
                        _ => {
                            self.pop()?;
                        }
                    }
                }
                b'1' => {
                    self.pop_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.stack.push(Value::None),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                b'K' => {
                    let value = self.take(1)?[0];
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(value.into()));
                }
                0x8a => {
                    let length = self.take(1)?[0];
                    self.long(usize::from(length))?;
                }
                0x8b => {
                    let length = self.length(4)?;
                    self.long(length)?;
                }
                b'I' => {
                    let value = match self.line()? {
                        "00" => Value::Bool(false),
                        "01" => Value::Bool(true),
                        text => Value::Int(text.trim().parse().map_err(|_| self.damaged("a wrong number"))?),
                    };
                    self.stack.push(value);
                }
                b'L' => {
                    let text = self.line()?.trim().trim_end_matches('L');
                    // A number that does not fit is no size of anything.
                    let value = text.parse().map_or(Value::None, Value::Int);
                    self.stack.push(value);
                }
                b'F' => {
                    let value = self.line()?.trim().parse().map_err(|_| self.damaged("a wrong number"))?;
                    self.stack.push(Value::Float(value));
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.stack.push(Value::Float(value));
                }
                b'S' => {
                    let text = self.line()?.trim();
                    let quoted = text.len() >= 2 && (text.starts_with('\'') || text.starts_with('"'));
                    if !quoted || text.as_bytes()[0] != text.as_bytes()[text.len() - 1] {
                        return Err(self.damaged("an unquoted text"));
                    }
                    let text = unescape(&text[1..text.len() - 1], true);
                    self.push(Node::Text(text));
                }
                b'V' => {
                    let text = unescape(self.line()?, false);
                    self.push(Node::Text(text));
                }
                b'T' | b'X' => {
                    let length = self.length(4)?;
                    self.text(length)?;
                }
                b'U' | 0x8c => {
                    let length = self.length(1)?;
                    self.text(length)?;
                }
                0x8d => {
                    let length = self.length(8)?;
                    self.text(length)?;
                }
                b'C' | b'B' | 0x8e | 0x96 => {
                    let length = self.length(match opcode {
                        b'C' => 1,
                        b'B' => 4,
                        _ => 8,
                    })?;
                    let bytes = self.take(length)?.to_vec();
                    self.push(Node::Bytes(bytes));
                }
                b')' => self.push(Node::Tuple(Vec::new())),
                b']' | 0x8f => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                b't' => {
                    let values = self.pop_mark()?;
                    self.push(Node::Tuple(values));
                }
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let base = self.mark().max(self.stack.len().saturating_sub(count));
                    if self.stack.len() - base < count {
                        return Err(self.damaged("an empty stack"));
                    }
                    let values = self.stack.split_off(base);
                    self.push(Node::Tuple(values));
                }
                b'l' | 0x91 => {
                    let values = self.pop_mark()?;
                    self.push(Node::List(values));
                }
                b'd' => {
                    let entries = self.pop_pairs()?;
                    self.push(Node::Dict(entries));
                }
                b'a' => {
                    let value = self.pop()?;
                    self.extend(vec![value])?;
                }
                b'e' | 0x90 => {
                    let values = self.pop_mark()?;
                    self.extend(values)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(vec![(key, value)])?;
                }
                b'u' => {
                    let entries = self.pop_pairs()?;
                    self.insert(entries)?;
                }
                b'p' => {
                    let key = self.memo_key()?;
                    self.remember(key)?;
                }
                b'q' => {
                    let key = self.length(1)? as u64;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.length(4)? as u64;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'g' => {
                    let key = self.memo_key()?;
                    self.recall(key)?;
                }
                b'h' => {
                    let key = self.length(1)? as u64;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.length(4)? as u64;
                    self.recall(key)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.import(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (module, name) = (self.owned_text(module)?, self.owned_text(name)?);
                    self.import(&module, &name)?;
                }
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let arguments = self.pop_mark()?;
                    self.import(module, name)?;
                    let class = self.pop()?;
                    self.call(class, arguments)?;
                }
                b'o' => {
                    let mut values = self.pop_mark()?;
                    if values.is_empty() {
                        return Err(self.damaged("an object without a class"));
                    }
                    let class = values.remove(0);
                    self.call(class, values)?;
                }
                b'R' | 0x81 => {
                    let arguments = self.pop()?;
                    let function = self.pop()?;
                    let arguments = self.arguments(arguments)?;
                    self.call(function, arguments)?;
                }
                0x92 => {
                    let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                    let arguments = self.arguments(arguments)?;
                    self.call(class, arguments)?;
                }
                b'b' => {
                    let given = self.pop()?;
                    let target = self.top()?;
                    // Attributes of dictionaries and tensors (`_metadata`, hooks) say nothing about numbers.
                    if let Value::Node(place) = target
                        && let Some(Node::Object { state, .. }) = self.nodes.get_mut(place)
                    {
                        *state = given;
                    }
                }
                b'P' => {
                    let text = self.line()?.to_owned();
                    self.push(Node::Text(text));
                    let key = self.pop()?;
                    self.push(Node::Persistent(key));
                }
                b'Q' => {
                    let key = self.pop()?;
                    self.push(Node::Persistent(key));
                }
                0x82..=0x84 => bail_input!(
                    "{}: its pickle uses Python's extension registry, which no weight file needs",
                    self.name
                ),
                0x97 | 0x98 => {
                    bail_input!(
                        "{}: its pickle keeps buffers in another file, which torch.save never does",
                        self.name
                    )
                }
                other => {
                    self.at -= 1;
                    return Err(self.damaged(&format!("the unknown opcode {other:#04x}")));
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            bail_input!(
                "{} is truncated: its pickle ends in the middle, at byte {}",
                self.name,
                self.bytes.len()
            );
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A length of 1, 4 or 8 bytes.
    fn length(&mut self, size: usize) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(self.take(size)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| self.damaged("an impossible length"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n');
        let Some(length) = length else {
            bail_input!("{} is truncated: its pickle ends in the middle of a line", self.name);
        };
        let (start, name) = (self.at, self.name);
        self.at += length + 1;
        std::str::from_utf8(&self.bytes[start..start + length])
            .map_err(|_| bad_input!("{name} is damaged: a line at byte {start} of its pickle is no text"))
    }

    fn text(&mut self, length: usize) -> Result<()> {
        // Python 2 wrote bytes as texts.
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Text(text));
        Ok(())
    }

    fn long(&mut self, length: usize) -> Result<()> {
        let bytes = self.take(length)?;
        if length > 8 {
            let bytes = bytes.to_vec();
            self.push(Node::Bytes(bytes));
            return Ok(());
        }
        // Two's complement: the last byte's sign fills the rest.
        let fill = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..length].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(Value::Node(self.nodes.len()));
        self.nodes.push(node);
    }

    /// The height below which values belong to an outer mark.
    fn mark(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value> {
        if self.stack.len() <= self.mark() {
            return Err(self.damaged("an empty stack"));
        }
        self.stack.pop().ok_or_else(|| self.damaged("an empty stack"))
    }

    fn top(&self) -> Result<Value> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.mark() => Ok(value),
            _ => Err(self.damaged("an empty stack")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.damaged("a missing mark")),
        }
    }

    fn pop_pairs(&mut self) -> Result<Vec<(Value, Value)>> {
        let values = self.pop_mark()?;
        if values.len() % 2 != 0 {
            return Err(self.damaged("a key without a value"));
        }
        Ok(values.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn extend(&mut self, values: Vec<Value>) -> Result<()> {
        let target = self.top()?;
        if let Value::Node(place) = target {
            match self.nodes.get_mut(place) {
                Some(Node::List(list)) => {
                    list.extend(values);
                    return Ok(());
                }
                // A record keeps no elements.
                Some(Node::Object { .. }) => return Ok(()),
                _ => {}
            }
        }
        Err(self.damaged("elements for what is no list"))
    }

    fn insert(&mut self, entries: Vec<(Value, Value)>) -> Result<()> {
        let target = self.top()?;
        if let Value::Node(place) = target {
            match self.nodes.get_mut(place) {
                Some(Node::Dict(dict)) => {
                    dict.extend(entries);
                    return Ok(());
                }
                Some(Node::Object { .. }) => return Ok(()),
                _ => {}
            }
        }
        Err(self.damaged("entries for what is no dictionary"))
    }

    fn memo_key(&mut self) -> Result<u64> {
        let key = self.line()?.trim().parse();
        key.map_err(|_| self.damaged("a wrong memo key"))
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let value = self.memo.get(&key).copied().ok_or_else(|| self.damaged("a missing memo"))?;
        self.stack.push(value);
        Ok(())
    }

    fn owned_text(&self, value: Value) -> Result<String> {
        match value {
            Value::Node(place) => match self.nodes.get(place) {
                Some(Node::Text(text)) => Ok(text.clone()),
                _ => Err(self.damaged("a name that is no text")),
            },
            _ => Err(self.damaged("a name that is no text")),
        }
    }

    fn arguments(&self, value: Value) -> Result<Vec<Value>> {
        match value {
            Value::Node(place) => match self.nodes.get(place) {
                // No function that is known here takes many, and copies of long tuples would add up.
                Some(Node::Tuple(values)) if values.len() <= 16 => Ok(values.clone()),
                _ => Err(self.damaged("wrong arguments")),
            },
            _ => Err(self.damaged("wrong arguments")),
        }
    }

    fn import(&mut self, module: &str, name: &str) -> Result<()> {
        if self.scripts && (module.starts_with("__torch__") || module == "torch.jit") {
            self.nodes.push(Node::Class(format!("{module}.{name}")));
            self.stack.push(Value::Global(Global::Script(self.nodes.len() - 1)));
            return Ok(());
        }
        let known = match (module, name) {
            ("torch._utils", "_rebuild_qtensor") if self.scripts => {
                Some(Global::Function(Function::Quantised))
            }
            (
                "torch",
                "QInt8Storage" | "QUInt8Storage" | "QInt32Storage" | "per_tensor_affine"
                | "per_channel_affine",
            ) if self.scripts => Some(Global::Storage(None)),
            _ => global(module, name),
        };
        match known {
            Some(global) => {
                self.stack.push(Value::Global(global));
                Ok(())
            }
            None => Err(foreign(self.name, module, name)),
        }
    }

    /// What Python would get from calling `function`.
    fn call(&mut self, function: Value, arguments: Vec<Value>) -> Result<()> {
        let Value::Global(function) = function else {
            return Err(self.damaged("a call of what is no function"));
        };
        let inert = |class| Node::Object { class, state: Value::None };
        let node = match function {
            // Entries may be given as a list of pairs; `defaultdict` is given a class.
            Global::Dict => {
                let mut entries = Vec::new();
                if let [Value::Node(place)] = arguments[..] {
                    match self.nodes.get(place) {
                        Some(Node::List(pairs)) => {
                            for pair in pairs {
                                match pair {
                                    Value::Node(place) => match self.nodes.get(*place) {
                                        Some(Node::List(pair) | Node::Tuple(pair)) if pair.len() == 2 => {
                                            entries.push((pair[0], pair[1]));
                                        }
                                        _ => return Err(self.damaged("a wrong dictionary")),
                                    },
                                    _ => return Err(self.damaged("a wrong dictionary")),
                                }
                            }
                        }
                        Some(Node::Dict(given)) => entries.clone_from(given),
                        _ => return Err(self.damaged("a wrong dictionary")),
                    }
                }
                self.copied += entries.len();
                Node::Dict(entries)
            }
            Global::Sequence | Global::Size => {
                let mut values = Vec::new();
                if let [Value::Node(place)] = arguments[..]
                    && let Some(Node::List(given) | Node::Tuple(given)) = self.nodes.get(place)
                {
                    values.clone_from(given);
                }
                self.copied += values.len();
                match function {
                    Global::Size => Node::Tuple(values),
                    _ => Node::List(values),
                }
            }
            Global::Function(function) => {
                self.copied += arguments.len();
                Node::Call(function, arguments)
            }
            Global::Encode => match arguments.first() {
                Some(&Value::Node(place)) => match self.nodes.get(place) {
                    Some(Node::Text(_)) => inert(None),
                    _ => return Err(self.damaged("wrong arguments")),
                },
                _ => return Err(self.damaged("wrong arguments")),
            },
            Global::First => {
                let first = arguments.first().copied().ok_or_else(|| self.damaged("wrong arguments"))?;
                self.stack.push(first);
                return Ok(());
            }
            Global::Inert => inert(None),
            Global::Script(class) => inert(Some(class)),
            Global::Storage(_) | Global::Dtype(_) => {
                return Err(self.damaged("a call of what is no function"));
            }
        };
        self.push(node);
        Ok(())
    }
}

/// The refusal of quantised tensors.
pub fn quantised(file: &str) -> anyhow::Error {
    bad_input!("{file} holds quantised tensors, which cannot be read: save the dequantised weights")
}

/// The refusal of a name that no tensor needs.
fn foreign(file: &str, module: &str, name: &str) -> anyhow::Error {
    let whole_module = ["torch.nn.", "torchvision.", "timm.", "transformers.", "__main__"]
        .iter()
        .any(|start| module.starts_with(start));
    match (module, name) {
        ("torch._utils", "_rebuild_qtensor") => quantised(file),
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_nested_tensor") => {
            bad_input!("{file} holds sparse or nested tensors, which cannot be read: save dense ones")
        }
        _ if whole_module => bad_input!(
            "{file} needs the Python class {module}.{name}, and reading weights never runs code: save `model.state_dict()` instead of \
             the whole module"
        ),
        _ => bad_input!(
            "{file} is refused: its pickle would import {module}.{name}, which no weights need, and reading weights never runs code"
        ),
    }
}

/// Python's escapes in texts of protocol 0: `\u` with four digits and, in quoted texts, `\x` with two, `\n` and quotes.
fn unescape(text: &str, quoted: bool) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        result.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let Some(kind) = rest.chars().next() else {
            result.push('\\');
            break;
        };
        let digits = match kind {
            'u' => 4,
            'U' => 8,
            'x' if quoted => 2,
            _ => 0,
        };
        let code = (digits > 0).then(|| rest.get(1..1 + digits)).flatten();
        let code = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        match (code, kind) {
            (Some(character), _) => {
                result.push(character);
                rest = &rest[1 + digits..];
            }
            (None, 'n') if quoted => {
                result.push('\n');
                rest = &rest[1..];
            }
            (None, '\\' | '\'' | '"') if quoted => {
                result.push(kind);
                rest = &rest[kind.len_utf8()..];
            }
            _ => result.push('\\'),
        }
    }
    result.push_str(rest);
    result
}

/// A whole number that cannot be negative.
pub fn size(value: Value) -> Result<u64> {
    match value {
        Value::Int(value) => u64::try_from(value).map_err(|_| anyhow!("{value} is negative")),
        _ => Err(anyhow!("a number is missing")),
    }
}
