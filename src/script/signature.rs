//! The code of TorchScript archives, as text: classes, their attributes, methods and operators. Nothing of it is run.

use std::collections::BTreeMap;

/// A class as its file tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassCode {
    /// Attributes that are learned.
    pub parameters: Vec<String>,
    /// Attributes that are carried along.
    pub buffers: Vec<String>,
    /// Methods in the order of the file.
    pub methods: Vec<MethodCode>,
}

/// A method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodCode {
    /// Its name.
    pub name: String,
    /// Arguments without `self`, and the result: `(x: Tensor) -> Tensor`.
    pub signature: String,
    /// The text of the whole method.
    pub code: String,
}

/// The names in `__parameters__ = ["weight", "bias", ]`.
fn listed(line: &str) -> Vec<String> {
    let inside =
        line.split_once('[').and_then(|(_, rest)| rest.rsplit_once(']')).map_or("", |(names, _)| names);
    inside
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Finds a class in the text of its file.
pub fn find_class(text: &str, name: &str) -> Option<ClassCode> {
    let mut lines = text.lines().skip_while(|line| {
        line.strip_prefix("class ").and_then(|rest| rest.split('(').next()).is_none_or(|found| found != name)
    });
    lines.next()?;
    let block: Vec<&str> = lines.take_while(|line| line.starts_with(' ') || line.is_empty()).collect();
    let mut class = ClassCode::default();
    let mut method: Option<Vec<&str>> = None;
    let mut methods = Vec::new();
    for line in block {
        let at_class = line.len() - line.trim_start().len() == 2;
        if at_class {
            methods.extend(method.take());
            let line = line.trim_start();
            if line.starts_with("__parameters__") {
                class.parameters = listed(line);
            } else if line.starts_with("__buffers__") {
                class.buffers = listed(line);
            } else if line.starts_with("def ") {
                method = Some(Vec::new());
            }
        }
        if let Some(method) = &mut method {
            method.push(line.strip_prefix("  ").unwrap_or(line));
        }
    }
    methods.extend(method);
    class.methods = methods.iter().filter_map(|lines| method_of(lines)).collect();
    Some(class)
}

fn method_of(lines: &[&str]) -> Option<MethodCode> {
    let name = lines.first()?.strip_prefix("def ")?.split('(').next()?.to_owned();
    let head_end = lines.iter().position(|line| line.trim_end().ends_with(':'))?;
    let head: Vec<&str> = lines[..=head_end].iter().map(|line| line.trim()).collect();
    let head = head.join(" ");
    let head = head.strip_prefix("def ")?.strip_prefix(name.as_str())?.trim_end_matches(':');
    // The type of self is a long name that tells nothing.
    let signature = match head.find(',') {
        Some(comma) if head.starts_with("(self:") && !head[..comma].contains(')') => {
            format!("({}", head[comma + 1..].trim_start())
        }
        _ => match head.find(')') {
            Some(end) if head.starts_with("(self:") => format!("({}", &head[end..]),
            _ => head.to_owned(),
        },
    };
    Some(MethodCode { name, signature, code: lines.join("\n").trim_end().to_owned() })
}

/// Operators that a text calls, with how often: `aten::conv2d`, `prim::RaiseException`, `namespace::operator`.
pub fn operators(text: &str, found: &mut BTreeMap<String, u64>) {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    for (prefix, is_torch) in [("torch.", true), ("ops.", false)] {
        for (start, _) in text.match_indices(prefix) {
            if start > 0 && (is_word(bytes[start - 1]) || bytes[start - 1] == b'.') {
                continue;
            }
            let rest = &text[start + prefix.len()..];
            let word = |text: &str| text.bytes().take_while(|byte| is_word(*byte)).count();
            let (namespace, name) = if is_torch {
                ("aten", &rest[..word(rest)])
            } else {
                let length = word(rest);
                let Some(behind) = rest[length..].strip_prefix('.') else { continue };
                (&rest[..length], &behind[..word(behind)])
            };
            let end = rest.find('(').map(|open| &rest[..open]).unwrap_or_default();
            if !name.is_empty() && end.ends_with(name) {
                *found.entry(format!("{namespace}::{name}")).or_default() += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "class Other(Module):\n  x : int\nclass Net(Module):\n  __parameters__ = [\"weight\", \"bias\", ]\n  __buffers__ = []\n  training : bool\n  def forward(self: __torch__.Net,\n    input: Tensor,\n    scale: Optional[float]=None) -> Tuple[Tensor, int]:\n    _0 = torch.conv2d(input, torch.t(self.weight))\n    ops.prim.RaiseException(\"a\")\n    return (__torch__.torch.nn.linear(_0), 1)\n  def reset(self: __torch__.Net) -> NoneType:\n    return None\n";

    #[test]
    fn classes_methods_and_operators_are_found() {
        let class = find_class(TEXT, "Net").unwrap();
        assert_eq!(class.parameters, ["weight", "bias"]);
        assert!(class.buffers.is_empty());
        let methods: Vec<(&str, &str)> =
            class.methods.iter().map(|method| (method.name.as_str(), method.signature.as_str())).collect();
        assert_eq!(
            methods,
            [
                ("forward", "(input: Tensor, scale: Optional[float]=None) -> Tuple[Tensor, int]"),
                ("reset", "() -> NoneType")
            ]
        );
        assert!(class.methods[1].code.ends_with("return None"));
        assert!(find_class(TEXT, "Missing").is_none());
        let mut found = BTreeMap::new();
        operators(TEXT, &mut found);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["aten::conv2d", "aten::t", "prim::RaiseException"]);
    }
}
