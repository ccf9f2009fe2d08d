//! The sum of gradients over all processes.
//!
//! The first step finds out which parameters the loss reaches at all and sums their gradients in one piece. From then on libtorch's Reducer sums them
//! bucket by bucket while the backward pass goes on. After its first pass the buckets are sorted in the order in which gradients came; that layout is
//! part of a checkpoint, since it decides in which order three and more processes add.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Compression, DistributedConfig};
use crate::native::TensorList;
use crate::native::distributed::{BucketLayout, GradientReducer, Group, ReducerConfig, bucket_layout};

/// How gradients are cut into buckets; parameters by their places in the optimizer's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// In the order in which they are sent.
    pub buckets: Vec<Vec<usize>>,
    /// Parameters that the loss does not reach.
    pub unused: Vec<usize>,
    /// Whether the buckets are in the order in which gradients come.
    pub sorted: bool,
}

impl Layout {
    /// The parameters that it was made for, in order.
    fn learning(&self) -> Vec<usize> {
        let mut all = self.buckets.concat();
        all.extend(&self.unused);
        all.sort_unstable();
        all
    }
}

/// Sums gradients, with what it has found out about them.
pub(super) struct GradientSums {
    config: ReducerConfig,
    overlap: bool,
    layout: Option<Layout>,
    reducer: Option<Running>,
}

/// A Reducer over the parameters that the loss reaches.
struct Running {
    reducer: GradientReducer,
    /// Their places among all.
    used: Vec<usize>,
    /// Whether it has reduced a pass and can tell in which order gradients come.
    knows_order: bool,
    /// Whether it was told to forget that order.
    settled: bool,
}

impl GradientSums {
    pub(super) fn new(config: &DistributedConfig) -> Self {
        let bytes = |megabytes: f64| (megabytes * 1024.0 * 1024.0).max(1.0) as usize;
        Self {
            config: ReducerConfig {
                first_bucket: bytes(config.first_bucket_mb),
                bucket: bytes(config.bucket_mb),
                find_unused: config.find_unused_parameters,
                compress: config.compress == Compression::Bf16,
            },
            overlap: config.overlap,
            layout: None,
            reducer: None,
        }
    }

    /// Before the backward pass from `loss`.
    pub(super) fn begin(&mut self, group: &Group, parameters: &TensorList, loss: &Tensor) -> Result<()> {
        if !self.overlap {
            return Ok(());
        }
        let learning: Vec<usize> =
            (0..parameters.len()).filter(|&place| parameters.tensors()[place].requires_grad()).collect();
        if self.layout.as_ref().is_some_and(|layout| layout.learning() != learning) {
            self.forget();
        }
        if self.layout.is_none() && self.config.find_unused {
            let buckets = self.fresh_buckets(parameters, &learning)?;
            // Their order may change from step to step: they stay as they are.
            self.layout = Some(Layout { buckets, unused: Vec::new(), sorted: true });
        }
        self.sort()?;
        let Some(layout) = &self.layout else { return Ok(()) };
        if self.reducer.is_none() {
            let mut used = layout.buckets.concat();
            used.sort_unstable();
            let list = TensorList::new(used.iter().map(|&place| &parameters.tensors()[place]))?;
            let reducer = GradientReducer::new(group, &list, &within(&layout.buckets, &used), self.config)?;
            self.reducer =
                Some(Running { reducer, used, knows_order: false, settled: self.config.find_unused });
        }
        match &self.reducer {
            Some(running) => running.reducer.prepare(loss),
            None => Ok(()),
        }
    }

    /// After it.
    pub(super) fn end(&mut self, group: &Group, parameters: &TensorList) -> Result<()> {
        if let Some(running) = &mut self.reducer {
            running.knows_order = true;
            return Ok(());
        }
        let reached: Vec<f32> = parameters
            .tensors()
            .iter()
            .map(|parameter| f32::from(u8::from(parameter.grad().defined())))
            .collect();
        // A few numbers that the host itself needs, whatever the device.
        let reached = Tensor::f_from_slice(&reached)?.f_to_device(Device::Cpu)?;
        group.sum(&reached)?;
        let reached = Vec::<f32>::try_from(reached.f_to_kind(Kind::Float)?)?;
        let (used, unused): (Vec<usize>, Vec<usize>) = (0..parameters.len())
            .filter(|&place| parameters.tensors()[place].requires_grad())
            .partition(|&place| reached[place] > 0.0);
        group.sum_gradients(&TensorList::new(used.iter().map(|&place| &parameters.tensors()[place]))?)?;
        if self.overlap {
            let buckets = self.fresh_buckets(parameters, &used)?;
            self.layout = Some(Layout { buckets, unused, sorted: false });
        }
        Ok(())
    }

    /// The layout for a checkpoint, where there is one.
    pub(super) fn layout(&mut self) -> Result<Option<Layout>> {
        self.sort()?;
        Ok(self.layout.clone())
    }

    /// Goes on with a layout.
    pub(super) fn set_layout(&mut self, layout: Option<Layout>) {
        self.forget();
        self.layout = layout;
    }

    fn forget(&mut self) {
        self.reducer = None;
        self.layout = None;
    }

    fn fresh_buckets(&self, parameters: &TensorList, places: &[usize]) -> Result<BucketLayout> {
        let list = TensorList::new(places.iter().map(|&place| &parameters.tensors()[place]))?;
        let buckets = bucket_layout(&list, self.config)?;
        Ok(buckets
            .into_iter()
            .map(|bucket| bucket.into_iter().map(|place| places[place]).collect())
            .collect())
    }

    /// Sorts the buckets in the order of gradients once it is known; gradients are cleared by then.
    fn sort(&mut self) -> Result<()> {
        let (Some(running), Some(layout)) = (&mut self.reducer, &mut self.layout) else { return Ok(()) };
        if !running.knows_order || running.settled {
            return Ok(());
        }
        // Until it has rebuilt its buckets once, the Reducer keeps a list that grows with every step.
        running.reducer.rebuild()?;
        running.settled = true;
        if layout.sorted {
            return running.reducer.set_layout(&within(&layout.buckets, &running.used));
        }
        let buckets = running.reducer.layout()?;
        layout.buckets = buckets
            .into_iter()
            .map(|bucket| bucket.into_iter().map(|place| running.used[place]).collect())
            .collect();
        layout.sorted = true;
        Ok(())
    }
}

/// Places among all as places among those that are used, which are sorted.
fn within(buckets: &[Vec<usize>], used: &[usize]) -> BucketLayout {
    let place = |place: &usize| used.binary_search(place).unwrap_or_default();
    buckets.iter().map(|bucket| bucket.iter().map(place).collect()).collect()
}
