//! Somebody else's network as an image classifier: a TorchScript module, or a package that was compiled ahead of time, with a head of ours or as it
//! is.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::image::{ImageModel, ImageModelConfig};
use super::layers::Linear;
use super::{Role, Scope};
use crate::bail_input;
use crate::native::script::{CompiledPackage, ScriptModule, optimise_graphs};
use crate::script::{Artifact, kind_of};

/// The name of such a model in recipes.
pub const NAME: &str = "torchscript";
/// The module in a run's folder.
pub const ATTACHMENT: &str = "module.pt";

/// The `model.script` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptConfig {
    /// The module, or a `.pt2` package. A run has a copy of it, which is then used.
    pub file: PathBuf,
    /// The method that is called, with one tensor `[batch, channels, height, width]`.
    #[serde(default = "forward")]
    pub method: String,
    /// Which of several outputs: a position from 0, or a key. The first if empty.
    #[serde(default)]
    pub output: String,
    /// What is put on top.
    #[serde(default)]
    pub head: ScriptHead,
}

fn forward() -> String {
    "forward".to_owned()
}

/// What makes scores of the module's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptHead {
    /// Nothing: it is the scores.
    #[default]
    None,
    /// A linear layer over the flattened output.
    Linear,
}

#[derive(Debug)]
enum Engine {
    Module {
        module: ScriptModule,
        /// Whether it was last put into training mode, so that it is not told so in each step.
        training: Cell<Option<bool>>,
    },
    Package(CompiledPackage),
}

/// The module with its head.
#[derive(Debug)]
pub struct ScriptedModel {
    engine: Engine,
    method: String,
    output: String,
    head: Option<Linear>,
}

impl ScriptedModel {
    /// Loads the module, registers its parameters and buffers under their own names, `backbone.` before them where there is a head, and puts the
    /// head on it.
    ///
    /// # Errors
    /// The file is neither module nor package, has no such method, or its output does not fit the images or the head.
    pub fn new(scope: &Scope, config: &ImageModelConfig, script: &ScriptConfig) -> Result<Self> {
        let device = scope.parameters().device();
        let shape = config.shape()?;
        let name = script.file.display().to_string();
        let engine = match kind_of(&script.file)? {
            Artifact::Module => {
                // Every run of the module is to compute the same, the first and those after a resume.
                optimise_graphs(false);
                let module = crate::script::load_module(&script.file, device)?;
                if !module.methods()?.contains(&script.method) {
                    bail_input!(
                        "model.script.method: {name} has no method `{}`; it has {}",
                        script.method,
                        module.methods()?.join(", ")
                    );
                }
                let names = match script.head {
                    ScriptHead::None => scope.clone(),
                    ScriptHead::Linear => scope.child("backbone"),
                };
                for (role, tensors) in
                    [(Role::Parameter, module.parameters()?), (Role::Buffer, module.buffers()?)]
                {
                    for (name, tensor) in tensors {
                        names.adopt(&name, tensor, role)?;
                    }
                }
                Engine::Module { module, training: Cell::new(None) }
            }
            Artifact::Package => Engine::Package(CompiledPackage::load(&script.file, device)?),
            other => bail_input!("{name} is {}, not a module that can be called", other.describe()),
        };
        let mut model =
            Self { engine, method: script.method.clone(), output: script.output.clone(), head: None };
        // One image shows how wide the output is, and that the module takes it at all.
        let _guard = tch::no_grad_guard();
        let image =
            Tensor::f_zeros([1, shape.channels, shape.size[0], shape.size[1]], (Kind::Float, device))?;
        let output = model
            .compute(&image, false)
            .with_context(|| format!("{name} does not take images of the shape {:?}", image.size()))
            .map_err(|error| crate::bad_input!("{error:#}"))?;
        let width = output.size().iter().skip(1).product::<i64>();
        match script.head {
            ScriptHead::Linear => model.head = Some(Linear::new(&scope.child("head"), width, shape.classes)?),
            ScriptHead::None if output.dim() != 2 || width != shape.classes => bail_input!(
                "{name} makes {:?} of an image where {} class scores are needed: choose --set model.script.method=… or model.script.output=…, or put a head on \
                 it with --head linear",
                output.size(),
                shape.classes
            ),
            ScriptHead::None => {}
        }
        Ok(model)
    }

    /// As every model: an operation that fails ends the verb with its message.
    fn forward_module(&self, images: &Tensor, train: bool) -> Tensor {
        match self.compute(images, train) {
            Ok(output) => output,
            Err(error) => panic!("{error:#}"),
        }
    }

    fn compute(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        match &self.engine {
            Engine::Module { module, training } => {
                if training.replace(Some(train)) != Some(train) {
                    module.set_training(train)?;
                }
                module.forward(&self.method, images, &self.output)
            }
            Engine::Package(package) => {
                let place = self.output.parse::<usize>().unwrap_or(0);
                let count = images.size()[0];
                let mut outputs = package.run(&[images.contiguous()])?;
                if place >= outputs.len() {
                    return Err(anyhow!("the package has {} outputs for {count} images", outputs.len()));
                }
                Ok(outputs.swap_remove(place))
            }
        }
    }
}

impl ImageModel for ScriptedModel {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        self.forward_module(images, train)
    }

    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        match self.head {
            Some(_) => maps.flatten(1, -1),
            None => maps.shallow_clone(),
        }
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        match &self.head {
            Some(head) => head.forward(features),
            None => features.shallow_clone(),
        }
    }

    fn head_name(&self) -> &'static str {
        "head"
    }

    fn save_script(&self, path: &Path) -> Option<Result<()>> {
        let Engine::Module { module, training } = &self.engine else {
            return Some(Err(crate::bad_input!("a compiled package cannot be saved as a module")));
        };
        training.set(Some(false));
        Some(module.set_training(false).and_then(|()| match &self.head {
            None => module.save(path),
            Some(head) => module.save_with_head(&self.method, &self.output, head.weight(), head.bias(), path),
        }))
    }
}
