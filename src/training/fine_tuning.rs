//! Which parts of a network learn, from when on, and how fast: for networks that begin with the weights of another training.
//!
//! Parameters are cut into stages from the input to the output, the head being the last. A stage is what has a number in its name at the
//! same place (`layer3`, `features.5`, `encoder.layer.11`); what comes before the first number (embeddings, patches) is one stage, and norms
//! alone belong to what they follow.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::bail_input;
use crate::models::lora::LoraConfig;
use crate::models::{Parameters, Role};

/// The `training.fine_tune` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FineTuneConfig {
    /// Train the head alone: everything below it keeps its weights and its running statistics (feature extraction).
    pub freeze_backbone: bool,
    /// Begin with the head alone and let one more stage learn after each so many epochs, from the output to the input (Howard, Ruder,
    /// "Universal language model fine-tuning for text classification", 2018).
    pub unfreeze_every: Option<u64>,
    /// Train the head and so many stages below it; the rest is frozen.
    pub top_layers: Option<usize>,
    /// Train small matrices beside the layers in place of the layers.
    pub lora: Option<LoraConfig>,
    /// Factor on the learning rate for each stage further from the output; 1 for one rate.
    pub layer_decay: f64,
    /// Factor on the learning rate of the head.
    pub head_lr_scale: f64,
    /// Whether a frozen backbone's features are computed once and kept in memory; where augmentation and memory allow it if left out.
    pub cache_features: Option<bool>,
}

impl Default for FineTuneConfig {
    fn default() -> Self {
        Self {
            freeze_backbone: false,
            unfreeze_every: None,
            top_layers: None,
            lora: None,
            layer_decay: 1.0,
            head_lr_scale: 1.0,
            cache_features: None,
        }
    }
}

impl FineTuneConfig {
    /// Checks every value on its own and against the others.
    pub fn validate(&self) -> Result<()> {
        if self.unfreeze_every == Some(0) {
            bail_input!("training.fine_tune.unfreeze_every is 0: it must be at least 1");
        }
        let exclusive = [
            ("freeze_backbone", self.freeze_backbone),
            ("unfreeze_every", self.unfreeze_every.is_some()),
            ("top_layers", self.top_layers.is_some()),
            ("lora", self.lora.is_some()),
        ];
        let given: Vec<&str> = exclusive.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        if let [first, second, ..] = given[..] {
            bail_input!(
                "training.fine_tune has both {first} and {second}, which choose different parts to train: give one"
            );
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::validate)?;
        if self.cache_features == Some(true) && !self.freeze_backbone {
            bail_input!(
                "training.fine_tune.cache_features needs freeze_backbone: features of a backbone that learns change in every step"
            );
        }
        for (key, value) in [("layer_decay", self.layer_decay), ("head_lr_scale", self.head_lr_scale)] {
            if !(value > 0.0 && value.is_finite()) {
                bail_input!("training.fine_tune.{key} is {value}: it must be above 0");
            }
        }
        Ok(())
    }

    /// Takes the backbone out of training, where the section says so.
    ///
    /// # Errors
    /// The section needs a head and the model has none.
    pub fn apply(&self, parameters: &Parameters, head: Option<&str>) -> Result<()> {
        let is_head = |name: &str| head.is_some_and(|head| is_of(name, head));
        if let Some(lora) = &self.lora {
            lora.freeze_rest(parameters, is_head)?;
        }
        if let Some(count) = self.top_layers {
            // Without a head the last stage is the first that counts.
            let trainable = parameters.trainable();
            let stages = stages(&trainable, head.unwrap_or_default());
            let below = stages.iter().copied().max().map_or(0, |last| last + usize::from(head.is_none()));
            for (stage, (_, tensor)) in stages.into_iter().zip(&trainable) {
                if stage + count < below {
                    let _ = tensor.f_set_requires_grad(false)?;
                }
            }
        }
        let Some(head) = self.head(head)? else { return Ok(()) };
        if self.freeze_backbone {
            for entry in parameters.entries() {
                if entry.role == Role::Parameter && !is_of(&entry.name, head) {
                    let _ = entry.tensor.f_set_requires_grad(false)?;
                }
            }
        }
        Ok(())
    }

    /// The head, where anything in this section asks for it.
    fn head<'a>(&self, head: Option<&'a str>) -> Result<Option<&'a str>> {
        let asked = self.freeze_backbone
            || self.unfreeze_every.is_some()
            || self.layer_decay != 1.0
            || self.head_lr_scale != 1.0;
        match (asked, head) {
            (false, _) => Ok(None),
            (true, Some(head)) => Ok(Some(head)),
            (true, None) => {
                bail_input!(
                    "training.fine_tune: this model has no head apart from the rest; use training.freeze and training.groups"
                )
            }
        }
    }

    /// The factor on the learning rate of each trainable parameter.
    pub fn rate_scales(&self, trainable: &[(String, Tensor)], head: Option<&str>) -> Result<Vec<f64>> {
        let Some(head) = self.head(head)? else { return Ok(vec![1.0; trainable.len()]) };
        let stages = stages(trainable, head);
        let last = stages.last().copied().unwrap_or_default();
        let scale = |(stage, (name, _)): (&usize, &(String, Tensor))| {
            let of_head = if is_of(name, head) { self.head_lr_scale } else { 1.0 };
            of_head * self.layer_decay.powi((last - stage) as i32)
        };
        Ok(stages.iter().zip(trainable).map(scale).collect())
    }
}

/// Whether a parameter belongs to the module `head`.
pub fn is_of(name: &str, head: &str) -> bool {
    name.strip_prefix(head).is_some_and(|rest| rest.starts_with('.'))
}

/// The stage of each parameter, counted from 0 at the input. Parameters come in the order of their making.
fn stages(parameters: &[(String, Tensor)], head: &str) -> Vec<usize> {
    let key = |name: &str| -> String {
        if is_of(name, head) {
            return head.to_owned();
        }
        let components: Vec<&str> = name.split('.').collect();
        let modules = &components[..components.len() - 1];
        let numbered =
            modules.iter().position(|module| module.contains(|letter: char| letter.is_ascii_digit()));
        numbered.map_or_else(String::new, |position| modules[..=position].join("."))
    };
    let mut stage = 0;
    let mut current: Option<String> = None;
    let mut found = Vec::with_capacity(parameters.len());
    for (position, (name, _)) in parameters.iter().enumerate() {
        let key = key(name);
        // What has no number belongs to what is before it, but for the first parameters, and a norm alone does too.
        let only_norms = || {
            parameters[position..]
                .iter()
                .take_while(|(other, _)| same_module(other, &key))
                .all(|(_, tensor)| tensor.dim() <= 1)
        };
        match &current {
            None => current = Some(key),
            Some(known) if *known == key => {}
            Some(_) if key.is_empty() => {}
            Some(_) if key != head && only_norms() => {}
            Some(_) => {
                stage += 1;
                current = Some(key);
            }
        }
        found.push(stage);
    }
    found
}

fn same_module(name: &str, module: &str) -> bool {
    name == module || is_of(name, module)
}

/// Lets stages learn one after the other.
pub struct Unfreezing {
    every: u64,
    /// From the output to the input.
    stages: Vec<Vec<Tensor>>,
    learning: Option<usize>,
}

impl Unfreezing {
    /// Nothing where the section asks for none.
    pub fn new(
        config: &FineTuneConfig,
        trainable: &[(String, Tensor)],
        head: Option<&str>,
    ) -> Result<Option<Self>> {
        let (Some(every), Some(head)) = (config.unfreeze_every, config.head(head)?) else { return Ok(None) };
        let numbers = stages(trainable, head);
        let mut sorted: Vec<Vec<Tensor>> = Vec::new();
        for (&number, (_, tensor)) in numbers.iter().zip(trainable) {
            while sorted.len() <= number {
                sorted.push(Vec::new());
            }
            sorted[number].push(tensor.shallow_clone());
        }
        sorted.reverse();
        Ok(Some(Self { every, stages: sorted, learning: None }))
    }

    /// Lets as many stages learn as that epoch (from 0) has; the number if it changes. The rest has no gradients, so the optimizer leaves it alone.
    pub fn apply(&mut self, epoch: u64) -> Result<Option<usize>> {
        let learning = ((epoch / self.every) as usize + 1).min(self.stages.len());
        if self.learning == Some(learning) {
            return Ok(None);
        }
        for (number, stage) in self.stages.iter().enumerate() {
            for tensor in stage {
                let _ = tensor.f_set_requires_grad(number < learning)?;
            }
        }
        self.learning = Some(learning);
        Ok(Some(learning))
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Lets everything learn again, so that whoever comes after the training finds the model as it was made.
    pub fn finish(&self) -> Result<()> {
        for tensor in self.stages.iter().flatten() {
            let _ = tensor.f_set_requires_grad(true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn parameters(list: &[(&str, i64)]) -> Vec<(String, Tensor)> {
        let tensor = |dims: i64| Tensor::zeros(vec![1; dims as usize], (Kind::Float, Device::Cpu));
        list.iter().map(|&(name, dims)| (name.to_owned(), tensor(dims).set_requires_grad(true))).collect()
    }

    #[test]
    fn stages_of_networks() {
        let resnet = parameters(&[
            ("conv1.weight", 4),
            ("bn1.weight", 1),
            ("bn1.bias", 1),
            ("layer1.0.conv1.weight", 4),
            ("layer1.1.bn1.weight", 1),
            ("layer2.0.conv1.weight", 4),
            ("fc.weight", 2),
            ("fc.bias", 1),
        ]);
        assert_eq!(stages(&resnet, "fc"), [0, 0, 0, 1, 1, 2, 3, 3]);
        let vit = parameters(&[
            ("conv_proj.weight", 4),
            ("class_token", 3),
            ("encoder.pos_embedding", 3),
            ("encoder.layers.encoder_layer_0.ln_1.weight", 1),
            ("encoder.layers.encoder_layer_0.mlp.0.weight", 2),
            ("encoder.layers.encoder_layer_1.mlp.0.weight", 2),
            ("encoder.ln.weight", 1),
            ("heads.head.weight", 2),
        ]);
        assert_eq!(stages(&vit, "heads"), [0, 0, 0, 1, 1, 2, 2, 3]);
        let bert = parameters(&[
            ("embeddings.word_embeddings.weight", 2),
            ("embeddings.LayerNorm.weight", 1),
            ("encoder.layer.0.attention.self.query.weight", 2),
            ("encoder.layer.1.attention.self.query.weight", 2),
            ("pooler.dense.weight", 2),
            ("classifier.weight", 2),
        ]);
        assert_eq!(stages(&bert, "classifier"), [0, 0, 1, 2, 2, 3]);
    }

    #[test]
    fn rates_fall_towards_the_input_and_stages_thaw_from_the_output() -> Result<()> {
        let network = parameters(&[("0.weight", 2), ("2.weight", 2), ("4.weight", 2)]);
        let config = FineTuneConfig { layer_decay: 0.5, head_lr_scale: 10.0, ..FineTuneConfig::default() };
        assert_eq!(config.rate_scales(&network, Some("4"))?, [0.25, 0.5, 10.0]);
        assert!(config.rate_scales(&network, None).is_err());

        let config = FineTuneConfig { unfreeze_every: Some(2), ..FineTuneConfig::default() };
        let mut unfreezing = Unfreezing::new(&config, &network, Some("4"))?.unwrap();
        let learning = || network.iter().map(|(_, tensor)| tensor.requires_grad()).collect::<Vec<_>>();
        assert_eq!(unfreezing.apply(0)?, Some(1));
        assert_eq!(learning(), [false, false, true]);
        assert_eq!(unfreezing.apply(1)?, None);
        assert_eq!(unfreezing.apply(2)?, Some(2));
        assert_eq!(learning(), [false, true, true]);
        assert_eq!(unfreezing.apply(100)?, Some(3));
        unfreezing.finish()?;
        assert_eq!(learning(), [true, true, true]);
        Ok(())
    }
}
