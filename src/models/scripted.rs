//! Somebody else's network in a family's place: a TorchScript module, or a package that was compiled ahead of time, with a head of ours or as it is.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::image::ImageModel;
use super::layers::Linear;
use super::{Role, Scope};
use crate::native::script::{CompiledPackage, ScriptModule, optimise_graphs};
use crate::recipe::Attachments;
use crate::script::{Artifact, kind_of, reason};
use crate::{bad_input, bail_input};

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
    /// The method that is called, with the family's inputs, batch first, as far as it takes tensors.
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

impl ScriptHead {
    /// Where the names of a module under it are: apart from those of the head, where there is one.
    pub fn names_of_module(self, scope: &Scope) -> Scope {
        match self {
            Self::None => scope.clone(),
            Self::Linear => scope.child("backbone"),
        }
    }
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

impl ScriptConfig {
    /// The same with the copy of the module that a run keeps, where it has one.
    pub fn kept(mut self, attachments: &Attachments) -> Self {
        if let Some(file) = attachments.file(ATTACHMENT) {
            self.file = file;
        }
        self
    }
}

/// A module or package as a function of tensors.
#[derive(Debug)]
pub struct ScriptedNetwork {
    engine: Engine,
    name: String,
    method: String,
    output: String,
}

impl ScriptedNetwork {
    /// Loads it and registers its parameters and buffers under their own names.
    ///
    /// # Errors
    /// The file is neither module nor package, or has no such method.
    pub fn new(names: &Scope, script: &ScriptConfig) -> Result<Self> {
        let device = names.parameters().device();
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
        Ok(Self { engine, name, method: script.method.clone(), output: script.output.clone() })
    }

    /// The output for as many of the inputs as the method takes tensors.
    pub fn compute(&self, inputs: &[&Tensor], train: bool) -> Result<Tensor> {
        match &self.engine {
            Engine::Module { module, training } => {
                if training.replace(Some(train)) != Some(train) {
                    module.set_training(train)?;
                }
                module.forward(&self.method, inputs, &self.output)
            }
            Engine::Package(package) => {
                let place = self.output.parse::<usize>().unwrap_or(0);
                let inputs: Vec<Tensor> = inputs.iter().map(|input| input.contiguous()).collect();
                let mut outputs = package.run(&inputs)?;
                if place >= outputs.len() {
                    return Err(anyhow!(
                        "the package has {} outputs, so none is number {place}",
                        outputs.len()
                    ));
                }
                Ok(outputs.swap_remove(place))
            }
        }
    }

    /// As every network: an operation that fails ends the verb with its message.
    pub fn forward(&self, inputs: &[&Tensor], train: bool) -> Tensor {
        match self.compute(inputs, train) {
            Ok(output) => output,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// The output for an example of its inputs, which shows whether it takes them at all, and its shape.
    ///
    /// # Errors
    /// It does not; `what` they are is for the message.
    pub fn probe(&self, inputs: &[&Tensor], what: &str) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.compute(inputs, false).map_err(|error| {
            bad_input!(
                "{} does not take {what} of the shape {:?}: {}",
                self.name,
                inputs[0].size(),
                reason(&format!("{error:#}"))
            )
        })
    }

    /// Where it comes from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes it as a module, with a linear layer on it if there is one.
    pub fn save(&self, layer: Option<ScriptedLayer<'_>>, path: &Path) -> Result<()> {
        let Engine::Module { module, training } = &self.engine else {
            bail_input!("a compiled package cannot be saved as a module");
        };
        training.set(Some(false));
        module.set_training(false)?;
        match layer {
            None => module.save(path),
            Some(ScriptedLayer { arguments, features, linear }) => module.save_with_head(
                &self.method,
                &self.output,
                arguments,
                features,
                (linear.weight(), linear.bias()),
                path,
            ),
        }
    }
}

/// A linear layer on the output of a module, for a file.
pub struct ScriptedLayer<'a> {
    /// The names of the inputs.
    pub arguments: &'a [&'a str],
    /// Lines of TorchScript that make the layer's input, `features [batch, …]`, of the module's output, `features`.
    pub features: &'a str,
    /// The layer.
    pub linear: &'a Linear,
}

/// A module or package with what makes scores of its output: nothing, or a linear layer over the flattened output.
#[derive(Debug)]
pub struct ScriptedModel {
    network: ScriptedNetwork,
    head: Option<Linear>,
    input: &'static str,
}

impl ScriptedModel {
    /// Loads it, with `backbone.` before its names where there is a head, and puts the head on it. `example` is an input, `input` what it is of.
    ///
    /// # Errors
    /// The file is neither module nor package, has no such method, or its output does not fit the input or the number of scores.
    pub fn new(
        scope: &Scope,
        script: &ScriptConfig,
        (input, example): (&'static str, &Tensor),
        scores: i64,
    ) -> Result<Self> {
        let network = ScriptedNetwork::new(&script.head.names_of_module(scope), script)?;
        let output = network.probe(&[example], input)?;
        let width = output.size().iter().skip(1).product::<i64>();
        let head = match script.head {
            ScriptHead::Linear => Some(Linear::new(&scope.child("head"), width, scores)?),
            ScriptHead::None => {
                require_scores(&network, &output, scores)?;
                None
            }
        };
        Ok(Self { network, head, input })
    }

    /// Inputs, batch first, to scores `[batch, scores]`.
    pub fn forward(&self, inputs: &Tensor, train: bool) -> Tensor {
        let output = self.network.forward(&[inputs], train);
        match &self.head {
            Some(head) => head.forward(&output.flatten(1, -1)),
            // A value for each sample may come without a dimension of its own.
            None if output.dim() == 1 => output.unsqueeze(1),
            None => output,
        }
    }

    /// Writes it as a module.
    pub fn save(&self, path: &Path) -> Result<()> {
        let layer = self.head.as_ref().map(|linear| ScriptedLayer {
            arguments: std::slice::from_ref(&self.input),
            features: "features = torch.flatten(features, 1)",
            linear,
        });
        self.network.save(layer, path)
    }
}

/// Refuses a module whose output is not so many scores for each sample.
pub fn require_scores(network: &ScriptedNetwork, output: &Tensor, scores: i64) -> Result<()> {
    match output.size()[..] {
        [_, width] if width == scores => Ok(()),
        [_] if scores == 1 => Ok(()),
        _ => bail_input!(
            "{} makes {:?} of one sample where {scores} scores are needed: choose --set model.script.method=… or model.script.output=…, or put a head on \
             it with --head linear",
            network.name(),
            output.size(),
        ),
    }
}

impl ImageModel for ScriptedModel {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        self.network.forward(&[images], train)
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
        Some(self.save(path))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::models::Parameters;

    #[test]
    fn a_module_that_does_not_fit_is_refused_with_what_to_do() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torchscript/classifier.pt");
        let script = |method: &str| ScriptConfig {
            file: file.clone(),
            method: method.to_owned(),
            output: String::new(),
            head: ScriptHead::None,
        };
        let refusal = |script: &ScriptConfig, size: &[i64], scores: i64| {
            let parameters = Parameters::new(Device::Cpu);
            let example = Tensor::zeros(size, (Kind::Float, Device::Cpu));
            let error = ScriptedModel::new(&parameters.root(), script, ("images", &example), scores);
            crate::error::one_sentence(&error.unwrap_err())
        };
        let text = refusal(&script("forwards"), &[1, 3, 8, 8], 3);
        assert!(text.contains("has no method `forwards`; it has forward"), "{text}");
        let text = refusal(&script("forward"), &[1, 5], 3);
        assert!(text.contains("does not take images of the shape [1, 5]"), "{text}");
        let text = refusal(&script("forward"), &[1, 3, 16, 16], 4);
        assert!(text.ends_with("but got 3 channels instead") && !text.contains("def "), "{text}");
        let text = refusal(&script("forward"), &[1, 1, 16, 16], 1000);
        assert!(text.contains("1000 scores are needed") && text.contains("--head linear"), "{text}");
    }
}
