//! Tracing a forward pass into a TorchScript file that Python loads, runs at other batch sizes, and trains on.

use super::{check, ffi};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::any::Any;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tch::Tensor;
use torch_sys::C_tensor;

/// A parameter or buffer of a traced module. The tensor must be the one that the forward pass uses (or a shallow clone): any
/// other tensor that it uses becomes a constant.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Dotted name, `layers.0.weight`: the last part is the attribute, the parts before it are modules.
    pub name: &'a str,
    /// The value.
    pub tensor: &'a Tensor,
    /// A buffer, which Python does not train.
    pub is_buffer: bool,
}

/// Which parameters and buffers a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// All that are given.
    All,
    /// Those that the pass uses: for a file that is a part of a model.
    Used,
}

/// What the C++ side hands back to [`call_forward`].
struct Pass<'a> {
    forward: &'a mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>,
    failure: Option<anyhow::Error>,
}

/// Runs `forward` on the example inputs, records its operations, and writes them as a TorchScript module to `path`.
///
/// The module is called `class_name` in Python; `forward` takes the named `inputs` and returns a tensor, or a tuple where there
/// are several. Numbers that the pass reads from its tensors (sizes, above all) become constants of the file: it serves other
/// sizes only if shapes follow from operations (`flatten`, `unflatten`, a size of -1). Layers that differ between training and
/// evaluation are recorded as they are now. Of the `entries` the file has those that `stored` says.
///
/// An error or a panic of `forward` is returned, and nothing is written then.
pub fn trace_module(
    class_name: &str,
    entries: &[Entry],
    stored: Stored,
    inputs: &[(&str, &Tensor)],
    path: &Path,
    forward: &mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<()> {
    ensure!(is_identifier(class_name), "`{class_name}` cannot be the name of a Python class");
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !is_identifier(name)) {
        bail!("`{name}` cannot be the name of an input");
    }
    let class_name = CString::new(class_name)?;
    let names = c_strings(entries.iter().map(|entry| entry.name))?;
    let input_names = c_strings(inputs.iter().map(|(name, _)| *name))?;
    let path_text = path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    let c_path = CString::new(path_text).with_context(|| format!("{path_text:?} is not a path"))?;

    let name_pointers = pointers(&names);
    let input_name_pointers = pointers(&input_names);
    let tensors: Vec<_> = entries.iter().map(|entry| entry.tensor.as_ptr()).collect();
    let are_buffers: Vec<bool> = entries.iter().map(|entry| entry.is_buffer).collect();
    let input_tensors: Vec<_> = inputs.iter().map(|(_, tensor)| tensor.as_ptr()).collect();
    let mut pass = Pass { forward, failure: None };
    // SAFETY: all arrays have the lengths that are given with them and outlive the call, in which alone `pass` is used.
    let outcome = check(unsafe {
        ffi::suite_trace_module(
            class_name.as_ptr(),
            name_pointers.as_ptr(),
            tensors.as_ptr(),
            are_buffers.as_ptr(),
            entries.len(),
            input_name_pointers.as_ptr(),
            input_tensors.as_ptr(),
            inputs.len(),
            stored == Stored::Used,
            call_forward,
            (&raw mut pass).cast(),
            c_path.as_ptr(),
        )
    });
    match pass.failure {
        // What went wrong in the pass says more than that it went wrong.
        Some(failure) => Err(failure),
        None => outcome.with_context(|| format!("cannot trace the model into {}", path.display())),
    }
}

/// Called by the C++ side: neither an error nor a panic may pass through it.
///
/// # Safety
///
/// `context` is the `Pass` of [`trace_module`]; `inputs` points to `count` live tensors; `outputs` belongs to the caller.
unsafe extern "C" fn call_forward(
    context: *mut c_void,
    inputs: *const *mut C_tensor,
    count: usize,
    outputs: *mut ffi::TensorVector,
) -> bool {
    // SAFETY: see above; nobody else uses the pass during the call.
    let pass = unsafe { &mut *context.cast::<Pass>() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: see above. The clones are the traced tensors themselves to the tracer.
        let inputs: Vec<Tensor> =
            (0..count).map(|i| unsafe { Tensor::clone_from_ptr(*inputs.add(i)) }).collect();
        let results = (pass.forward)(&inputs)?;
        ensure!(results.iter().all(Tensor::defined), "the traced forward pass returned an undefined tensor");
        for tensor in &results {
            // SAFETY: `outputs` is the caller's list.
            unsafe { ffi::suite_trace_output(outputs, tensor.as_ptr()) };
        }
        Ok(())
    }));
    pass.failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(panic) => Some(anyhow!("the traced forward pass panicked: {}", panic_message(panic.as_ref()))),
    };
    pass.failure.is_none()
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    crate::error::without_backtrace(text.unwrap_or("with no message"))
}

fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first == '_' || first.is_ascii_alphabetic())
        && characters.all(|other| other == '_' || other.is_ascii_alphanumeric())
}

fn c_strings<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<CString>> {
    names.map(|name| CString::new(name).with_context(|| format!("{name:?} cannot be a name"))).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tch::{CModule, Device, IValue, Kind};

    struct Network {
        weight: Tensor,
        bias: Tensor,
        shift: Tensor,
    }

    impl Network {
        /// Writes what makes its scores.
        fn trace_scores(&self, path: &Path) {
            trace_module(
                "Network",
                &self.entries(),
                Stored::All,
                &[("features", &batch(2))],
                path,
                &mut |inputs| Ok(vec![self.forward(&inputs[0]).0]),
            )
            .unwrap();
        }

        fn new() -> Network {
            let numbers = |shape: &[i64]| {
                let count: i64 = shape.iter().product();
                Tensor::arange(count, (Kind::Float, Device::Cpu)).sin().reshape(shape)
            };
            Network {
                weight: numbers(&[3, 4]).set_requires_grad(true),
                bias: numbers(&[3]).set_requires_grad(true),
                shift: numbers(&[4]),
            }
        }

        fn entries(&self) -> Vec<Entry<'_>> {
            vec![
                Entry { name: "layers.0.linear.weight", tensor: &self.weight, is_buffer: false },
                Entry { name: "layers.0.linear.bias", tensor: &self.bias, is_buffer: false },
                Entry { name: "shift", tensor: &self.shift, is_buffer: true },
            ]
        }

        fn forward(&self, input: &Tensor) -> (Tensor, Tensor) {
            let hidden = (input + &self.shift).linear(&self.weight, Some(&self.bias));
            let scores = hidden.softmax(-1, Kind::Float);
            (hidden, scores)
        }
    }

    fn batch(size: i64) -> Tensor {
        (Tensor::arange(size * 4, (Kind::Float, Device::Cpu)) * 0.37).cos().reshape([size, 4])
    }

    /// A path in the folder of temporary files that no other test uses.
    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tch-suite-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_traced_module_computes_the_same_at_other_batch_sizes() {
        let network = Network::new();
        let path = scratch("one.pt");
        network.trace_scores(&path);
        let module = CModule::load(&path).unwrap();
        for size in [2, 1, 7] {
            assert!(module.forward_ts(&[batch(size)]).unwrap().equal(&network.forward(&batch(size)).0));
        }
        // tch drops the dots' meaning but keeps the names.
        let mut names: Vec<String> =
            module.named_parameters().unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, ["layers.0.linear.bias", "layers.0.linear.weight"]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_parameters_of_the_file_are_what_it_computes_with() {
        let network = Network::new();
        let path = scratch("trainable.pt");
        network.trace_scores(&path);
        let module = CModule::load(&path).unwrap();
        let mut before = module.forward_ts(&[batch(5)]).unwrap();
        for (name, mut tensor) in module.named_parameters().unwrap() {
            if name.ends_with("bias") {
                let _ = tch::no_grad(|| tensor.g_add_scalar_(1.0));
            }
        }
        let after = module.forward_ts(&[batch(5)]).unwrap();
        let _ = before.g_add_scalar_(1.0);
        assert!(after.allclose(&before, 1e-6, 1e-6, false));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_part_has_what_it_uses_and_nothing_else() {
        let network = Network::new();
        let path = scratch("part.pt");
        trace_module(
            "Network",
            &network.entries(),
            Stored::Used,
            &[("features", &batch(2))],
            &path,
            &mut |inputs| Ok(vec![inputs[0].linear(&network.weight, None::<&Tensor>)]),
        )
        .unwrap();
        let module = CModule::load(&path).unwrap();
        let names: Vec<String> =
            module.named_parameters().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["layers.0.linear.weight"]);
        let expected = batch(3).linear(&network.weight, None::<&Tensor>);
        assert!(module.forward_ts(&[batch(3)]).unwrap().equal(&expected));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn several_outputs_are_a_tuple() {
        let network = Network::new();
        let path = scratch("two.pt");
        trace_module(
            "Network",
            &network.entries(),
            Stored::All,
            &[("features", &batch(2))],
            &path,
            &mut |inputs| {
                let (hidden, scores) = network.forward(&inputs[0]);
                Ok(vec![hidden, scores])
            },
        )
        .unwrap();
        let module = CModule::load(&path).unwrap();
        let IValue::Tuple(outputs) = module.forward_is(&[IValue::Tensor(batch(6))]).unwrap() else {
            panic!("no tuple")
        };
        let (hidden, scores) = network.forward(&batch(6));
        let [IValue::Tensor(first), IValue::Tensor(second)] = &outputs[..] else { panic!("not two tensors") };
        assert!(first.equal(&hidden) && second.equal(&scores));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn errors_and_panics_of_the_pass_come_back() {
        let network = Network::new();
        let path = scratch("failed.pt");
        let trace = |forward: &mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>| {
            let error = trace_module(
                "Network",
                &network.entries(),
                Stored::All,
                &[("features", &batch(2))],
                &path,
                forward,
            )
            .unwrap_err();
            assert!(!path.exists());
            crate::error::one_sentence(&error)
        };
        assert_eq!(trace(&mut |_| bail!("no such head")), "no such head");
        assert_eq!(
            trace(&mut |_| panic!("a bug in {}", "a layer")),
            "the traced forward pass panicked: a bug in a layer"
        );
        assert!(trace(&mut |inputs| Ok(vec![inputs[0].matmul(&inputs[0])])).contains("panicked"));
        assert!(trace(&mut |_| Ok(vec![])).contains("no output"));
        assert!(trace(&mut |_| Ok(vec![Tensor::new()])).contains("undefined"));
        // A failed trace leaves nothing behind: the next one works.
        network.trace_scores(&path);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn names_are_checked() {
        let tensor = Tensor::ones([4], (Kind::Float, Device::Cpu));
        let trace = |class: &str, names: &[&str], input: &str| {
            let entries: Vec<Entry> =
                names.iter().map(|name| Entry { name, tensor: &tensor, is_buffer: false }).collect();
            let error = trace_module(
                class,
                &entries,
                Stored::All,
                &[(input, &batch(1))],
                &scratch("names.pt"),
                &mut |inputs| Ok(vec![&inputs[0] + &tensor]),
            )
            .unwrap_err();
            crate::error::one_sentence(&error)
        };
        assert!(trace("2fast", &["a"], "x").contains("`2fast`"));
        assert!(trace("Net", &["a"], "x y").contains("`x y`"));
        assert!(trace("Net", &["a", "a"], "x").contains("`a` names two things"));
        assert!(trace("Net", &["a", "a.b"], "x").contains("which is a tensor"));
        assert!(trace("Net", &["a.b", "a"], "x").contains("names two things"));
        assert!(trace("Net", &["a..b"], "x").contains("`a..b`"));
        assert!(trace("Net", &["a."], "x").contains("`a.`"));
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_error() {
        let path = scratch("missing").join("model.pt");
        let error = trace_module("Net", &[], Stored::All, &[("x", &batch(1))], &path, &mut |inputs| {
            Ok(vec![&inputs[0] + 1])
        })
        .unwrap_err();
        assert!(crate::error::one_sentence(&error).contains("missing"), "{error:?}");
    }
}
