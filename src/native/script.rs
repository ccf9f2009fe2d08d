//! TorchScript modules and AOTInductor packages: what tch's `CModule` lacks. Names keep their dots, buffers are reachable, training mode is a
//! switch, and arguments of any declared type can be given.

use std::ffi::CString;
use std::path::Path;
use std::ptr;
use std::slice;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

use super::{check, device_code, ffi, new_tensor, new_text};

/// A value that goes into a method or comes out of it.
#[derive(Debug)]
pub enum Value {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
    /// A tensor.
    Tensor(Tensor),
    /// Several of a kind. Where a tensor is declared, nested lists of numbers become one: float32 if a number has a point, else int64, or
    /// bool of truth values.
    List(Vec<Value>),
    /// A fixed number of values.
    Tuple(Vec<Value>),
    /// Values by key.
    Dict(Vec<(Value, Value)>),
}

/// A value on the C++ side.
struct Crossing(*mut ffi::ScriptValue);

impl Drop for Crossing {
    fn drop(&mut self) {
        // SAFETY: made by the shim, owned here, and freed once, with all its children.
        unsafe { ffi::suite_value_free(self.0) }
    }
}

impl Crossing {
    fn of(value: &Value) -> Self {
        let new = |kind: i32, integer: i64, number: f64, text: &str, tensor: Option<&Tensor>| {
            let tensor = tensor.map_or(ptr::null(), |tensor| tensor.as_ptr());
            // SAFETY: the text is read for its length and copied; the tensor is alive and cloned.
            Crossing(unsafe {
                ffi::suite_value_new(kind, integer, number, text.as_ptr().cast(), text.len(), tensor)
            })
        };
        let with_children = |kind: i32, children: &mut dyn Iterator<Item = &Value>| {
            let parent = new(kind, 0, 0.0, "", None);
            for child in children {
                let child = std::mem::ManuallyDrop::new(Crossing::of(child));
                // SAFETY: both are alive, and the child now belongs to the parent.
                unsafe { ffi::suite_value_push(parent.0, child.0) };
            }
            parent
        };
        match value {
            Value::None => new(0, 0, 0.0, "", None),
            Value::Bool(value) => new(1, i64::from(*value), 0.0, "", None),
            Value::Int(value) => new(2, *value, 0.0, "", None),
            Value::Float(value) => new(3, 0, *value, "", None),
            Value::Text(value) => new(4, 0, 0.0, value, None),
            Value::Tensor(value) => new(5, 0, 0.0, "", Some(value)),
            Value::List(values) => with_children(6, &mut values.iter()),
            Value::Tuple(values) => with_children(7, &mut values.iter()),
            Value::Dict(entries) => {
                with_children(8, &mut entries.iter().flat_map(|(key, value)| [key, value]))
            }
        }
    }

    /// Copies a value of the C++ side.
    ///
    /// # Safety
    /// `value` points to a live value.
    unsafe fn read(value: *const ffi::ScriptValue) -> Result<Value> {
        // SAFETY: as the caller promises; children live as long as their parent.
        unsafe {
            let size = ffi::suite_value_size(value);
            let child = |place: usize| Crossing::read(ffi::suite_value_child(value, place));
            Ok(match ffi::suite_value_kind(value) {
                0 => Value::None,
                1 => Value::Bool(ffi::suite_value_integer(value) != 0),
                2 => Value::Int(ffi::suite_value_integer(value)),
                3 => Value::Float(ffi::suite_value_number(value)),
                4 => {
                    let mut length = 0;
                    let text = ffi::suite_value_text(value, &mut length);
                    let bytes = slice::from_raw_parts(text.cast::<u8>(), length);
                    Value::Text(String::from_utf8_lossy(bytes).into_owned())
                }
                5 => Value::Tensor(new_tensor(|result| ffi::suite_value_tensor(value, result))?),
                6 => Value::List((0..size).map(child).collect::<Result<_>>()?),
                7 => Value::Tuple((0..size).map(child).collect::<Result<_>>()?),
                _ => Value::Dict(
                    (0..size / 2)
                        .map(|pair| Ok((child(2 * pair)?, child(2 * pair + 1)?)))
                        .collect::<Result<_>>()?,
                ),
            })
        }
    }
}

/// A loaded TorchScript module.
#[derive(Debug)]
pub struct ScriptModule {
    module: *mut ffi::ScriptModule,
    device: Device,
}

// SAFETY: a module may be used from any thread, one at a time; there is no `Sync`.
unsafe impl Send for ScriptModule {}

impl Drop for ScriptModule {
    fn drop(&mut self) {
        // SAFETY: made by the shim and freed once.
        unsafe { ffi::suite_script_free(self.module) }
    }
}

fn path_text(path: &Path) -> Result<CString> {
    let text = path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    CString::new(text).with_context(|| format!("{text:?} is not a path"))
}

fn c_strings(names: &[&str]) -> Result<Vec<CString>> {
    Ok(names.iter().map(|name| CString::new(*name)).collect::<std::result::Result<_, _>>()?)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

impl ScriptModule {
    /// Loads a module. This runs its `__setstate__` methods, where it has some.
    ///
    /// # Errors
    /// The file is no module, is damaged, or needs an operator that is not registered.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let (name, (code, index)) = (path_text(path)?, device_code(device)?);
        let mut module = ptr::null_mut();
        // SAFETY: the path is terminated, and there is a place for the result.
        check(unsafe { ffi::suite_script_load(name.as_ptr(), code, index, &mut module) })?;
        Ok(Self { module, device })
    }

    /// Writes it as Python's `torch.jit.load` reads it, whole or not at all if the caller stages the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        let name = path_text(path)?;
        // SAFETY: the module is alive, the path terminated.
        check(unsafe { ffi::suite_script_save(self.module, name.as_ptr()) })
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes a module that calls a method of this one with as many of its own `arguments` as that takes, takes one of its outputs as `features`, runs
    /// the lines of TorchScript given over it, and puts a linear layer (weight, bias) on what `features` then is.
    pub fn save_with_head(
        &self,
        method: &str,
        output: &str,
        arguments: &[&str],
        lines: &str,
        (weight, bias): (&Tensor, Option<&Tensor>),
        path: &Path,
    ) -> Result<()> {
        let (method, output, name) = (CString::new(method)?, CString::new(output)?, path_text(path)?);
        let (arguments, lines) = (CString::new(arguments.join("\n"))?, CString::new(lines)?);
        let bias = match bias {
            Some(bias) => bias.shallow_clone(),
            None => Tensor::f_zeros([weight.size()[0]], (weight.kind(), weight.device()))?,
        };
        // SAFETY: everything is alive, and texts are terminated.
        check(unsafe {
            ffi::suite_script_save_with_head(
                self.module,
                method.as_ptr(),
                output.as_ptr(),
                arguments.as_ptr(),
                lines.as_ptr(),
                weight.as_ptr(),
                bias.as_ptr(),
                name.as_ptr(),
            )
        })
    }

    /// Where its tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// `train(on)`: dropout and batch statistics.
    pub fn set_training(&self, on: bool) -> Result<()> {
        // SAFETY: the module is alive and not shared between threads.
        check(unsafe { ffi::suite_script_train(self.module, on) })
    }

    /// A copy for inference: attributes become constants, and what training alone needs goes. `kept` are methods to keep besides `forward`.
    pub fn frozen(&self, kept: &[&str]) -> Result<Self> {
        let names = c_strings(kept)?;
        let pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let mut module = ptr::null_mut();
        // SAFETY: the names are as many as is said, and there is a place for the result.
        check(unsafe {
            ffi::suite_script_freeze(self.module, pointers.as_ptr(), pointers.len(), &mut module)
        })?;
        Ok(Self { module, device: self.device })
    }

    /// A frozen copy whose linear layers have weights of 8 bits, a scale for each of their rows, and quantise their input at each call, as
    /// `quantize_dynamic` of PyTorch makes them; and how many they are. Only CPUs compute it.
    pub fn quantized(&self, kept: &[&str]) -> Result<(Self, usize)> {
        let names = c_strings(kept)?;
        let pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let mut module = ptr::null_mut();
        let mut layers = 0;
        // SAFETY: the names are as many as is said, and there are places for the results.
        check(unsafe {
            ffi::suite_script_quantize(
                self.module,
                pointers.as_ptr(),
                pointers.len(),
                &mut module,
                &mut layers,
            )
        })?;
        Ok((Self { module, device: self.device }, layers))
    }

    /// Casts floating-point parameters and buffers.
    pub fn cast(&self, kind: Kind) -> Result<()> {
        let code = match kind {
            Kind::Half => 5,
            Kind::Float => 6,
            Kind::Double => 7,
            Kind::BFloat16 => 15,
            other => bail!("modules are cast to types of floating point, not to {other:?}"),
        };
        // SAFETY: the module is alive.
        check(unsafe { ffi::suite_script_cast(self.module, code) })
    }

    /// Names of its methods.
    pub fn methods(&self) -> Result<Vec<String>> {
        // SAFETY: the module is alive, and there is a place for the result.
        Ok(lines(&new_text(|result| unsafe { ffi::suite_script_methods(self.module, result) })?))
    }

    /// A method's arguments and result as TorchScript writes them: `(x: Tensor, scale: float = 1.) -> Tensor`.
    ///
    /// # Errors
    /// There is no such method.
    pub fn signature(&self, method: &str) -> Result<String> {
        let name = CString::new(method)?;
        // SAFETY: the module is alive, the name terminated.
        new_text(|result| unsafe { ffi::suite_script_schema(self.module, name.as_ptr(), result) })
    }

    /// Names of a method's arguments.
    pub fn arguments(&self, method: &str) -> Result<Vec<String>> {
        let name = CString::new(method)?;
        // SAFETY: the module is alive, the name terminated.
        let text =
            new_text(|result| unsafe { ffi::suite_script_arguments(self.module, name.as_ptr(), result) })?;
        Ok(lines(&text))
    }

    /// Its parameters by dotted name, in its own order: the tensors that it computes with.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        self.tensors(false)
    }

    /// Its buffers, likewise.
    pub fn buffers(&self) -> Result<Vec<(String, Tensor)>> {
        self.tensors(true)
    }

    fn tensors(&self, buffers: bool) -> Result<Vec<(String, Tensor)>> {
        let mut list = ptr::null_mut();
        let names = new_text(|names| {
            // SAFETY: the module is alive, and there are places for both results.
            unsafe { ffi::suite_script_tensors(self.module, buffers, names, &mut list) }
        })?;
        let tensors = tensors_of(list)?;
        Ok(lines(&names).into_iter().zip(tensors).collect())
    }

    /// Calls a method. Arguments are given by name or, with [`Value::Int`] as key, by position from 0; what is left out takes its default.
    ///
    /// # Errors
    /// There is no such method, an argument is missing, unknown or of another type than declared, or the method raises.
    pub fn call(&self, method: &str, arguments: Vec<(Value, Value)>) -> Result<Value> {
        let name = CString::new(method)?;
        let (code, index) = device_code(self.device)?;
        let arguments = Crossing::of(&Value::Dict(arguments));
        let mut result = ptr::null_mut();
        // SAFETY: module and arguments are alive, and there is a place for the result.
        check(unsafe {
            ffi::suite_script_call(self.module, name.as_ptr(), arguments.0, code, index, &mut result)
        })?;
        let result = Crossing(result);
        // SAFETY: a call that succeeded has made a value, which lives until the end of this function.
        unsafe { Crossing::read(result.0) }
    }

    /// Calls a method with tensors, with gradients: as many as its first arguments are declared as tensors, the rest is left out. `output` chooses
    /// from several outputs, by position or key; empty for the first.
    pub fn forward(&self, method: &str, inputs: &[&Tensor], output: &str) -> Result<Tensor> {
        let (name, output) = (CString::new(method)?, CString::new(output)?);
        let pointers: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
        new_tensor(|result| {
            // SAFETY: everything is alive, texts are terminated, the inputs are as many as is said, and there is a place for the result.
            unsafe {
                ffi::suite_script_forward(
                    self.module,
                    name.as_ptr(),
                    pointers.as_ptr(),
                    pointers.len(),
                    output.as_ptr(),
                    result,
                )
            }
        })
    }
}

/// Takes a list of the shim apart and frees it.
fn tensors_of(list: *mut ffi::TensorVector) -> Result<Vec<Tensor>> {
    // SAFETY: the list was made by the shim for us, and is freed here.
    unsafe {
        let tensors = (0..ffi::suite_list_size(list))
            .map(|place| new_tensor(|result| ffi::suite_list_get(list, place, result)))
            .collect();
        ffi::suite_list_free(list);
        tensors
    }
}

/// Whether TorchScript's executor rewrites graphs after their first runs, in the whole process. Without, every run of a module computes the
/// same, the first and those after a resume: for training.
pub fn optimise_graphs(on: bool) {
    // SAFETY: a plain value.
    unsafe { ffi::suite_script_optimise(on) }
}

/// A network that was compiled ahead of time by `torch._inductor.aoti_compile_and_package`: native code, which runs as this user.
#[derive(Debug)]
pub struct CompiledPackage(*mut ffi::CompiledPackage);

// SAFETY: as for modules.
unsafe impl Send for CompiledPackage {}

impl Drop for CompiledPackage {
    fn drop(&mut self) {
        // SAFETY: made by the shim and freed once.
        unsafe { ffi::suite_package_free(self.0) }
    }
}

impl CompiledPackage {
    /// Loads a `.pt2` package. Its native code is unpacked and linked into this process.
    ///
    /// # Errors
    /// The file is no such package, or was compiled for another machine or libtorch.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let (name, (_, index)) = (path_text(path)?, device_code(device)?);
        let mut package = ptr::null_mut();
        // SAFETY: the path is terminated, and there is a place for the result.
        check(unsafe { ffi::suite_package_load(name.as_ptr(), index, &mut package) })?;
        Ok(Self(package))
    }

    /// Computes its outputs, flattened in Python's order, from its inputs, likewise.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let inputs = super::TensorList::new(inputs)?;
        let mut outputs = ptr::null_mut();
        // SAFETY: package and inputs are alive, and there is a place for the result.
        check(unsafe { ffi::suite_package_run(self.0, inputs.as_ptr(), &mut outputs) })?;
        tensors_of(outputs)
    }

    /// How inputs and outputs are nested, as Python's JSON describes it: inputs first.
    pub fn specification(&self) -> Result<Vec<String>> {
        // SAFETY: the package is alive, and there is a place for the result.
        Ok(lines(&new_text(|result| unsafe { ffi::suite_package_specification(self.0, result) })?))
    }
}
