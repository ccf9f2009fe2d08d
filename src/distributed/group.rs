//! The group of processes as the trainer sees it.

use std::mem::ManuallyDrop;
use std::rc::Rc;

use anyhow::{Context, Result};
use tch::Tensor;

use super::gradients::GradientSums;
use super::health::Meeting;
use super::{Broadcast, DistributedConfig, Layout, Reducer, Sums};
use crate::models::Parameters;
use crate::models::Role;
use crate::native::TensorList;
use crate::native::distributed::{Group, stand_in, synchronise_batch_norm};

/// Processes that train together.
pub struct ProcessGroup {
    meeting: Rc<Meeting>,
    /// Left alone when a process failed: to take the group apart would be to wait for what the others never send.
    group: ManuallyDrop<Group>,
    gradients: GradientSums,
    synchronises_norms: bool,
}

impl ProcessGroup {
    pub(super) fn new(meeting: Rc<Meeting>, group: Group, config: &DistributedConfig) -> Result<Self> {
        if config.sync_batch_norm {
            synchronise_batch_norm(Some(&group))?;
        }
        Ok(Self {
            meeting,
            group: ManuallyDrop::new(group),
            gradients: GradientSums::new(config),
            synchronises_norms: config.sync_batch_norm,
        })
    }

    /// What the processes share besides collectives.
    pub fn meeting(&self) -> &Rc<Meeting> {
        &self.meeting
    }

    /// Begins anew to find out how gradients are best cut and sent.
    pub fn configure(&mut self, config: &DistributedConfig) {
        self.gradients = GradientSums::new(config);
    }

    /// The collectives themselves.
    pub fn collectives(&self) -> &Group {
        &self.group
    }

    /// Tensors of one length in each process, one after the other: `[processes, length]`.
    fn gather_equal(&self, tensor: &Tensor) -> Result<Tensor> {
        self.meeting.begin_collective();
        self.group.gather(tensor)
    }

    /// Vectors of any lengths, in the order of the ranks.
    fn gather_vectors(&self, own: &Tensor) -> Result<Vec<Tensor>> {
        let length = Tensor::f_from_slice(&[own.numel() as i64])?;
        let lengths = Vec::<i64>::try_from(self.gather_equal(&length)?.f_flatten(0, -1)?)?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(lengths.iter().map(|_| own.shallow_clone()).collect());
        }
        let padded = own.f_constant_pad_nd([0, longest - own.numel() as i64])?;
        let all = self.gather_equal(&padded)?;
        let part = |(rank, &length): (usize, &i64)| Ok(all.f_get(rank as i64)?.f_narrow(0, 0, length)?);
        lengths.iter().enumerate().map(part).collect()
    }
}

impl Reducer for ProcessGroup {
    fn world_size(&self) -> usize {
        self.group.size()
    }

    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn sum(&mut self, value: f64) -> Result<f64> {
        self.meeting.begin_collective();
        let tensor = Tensor::f_from_slice(&[value])?;
        self.group.sum(&tensor)?;
        Ok(tensor.f_double_value(&[0])?)
    }

    fn gather(&mut self, rows: Vec<f64>) -> Result<Vec<f64>> {
        let parts = self.gather_vectors(&Tensor::f_from_slice(&rows)?)?;
        let parts = parts.iter().map(|part| Ok(Vec::<f64>::try_from(part)?)).collect::<Result<Vec<_>>>()?;
        Ok(parts.concat())
    }

    fn gather_texts(&mut self, text: String) -> Result<Vec<String>> {
        let parts = self.gather_vectors(&Tensor::f_from_slice(text.as_bytes())?)?;
        parts
            .iter()
            .map(|part| String::from_utf8(Vec::<u8>::try_from(part)?).context("a process sent no text"))
            .collect()
    }

    fn gather_tensors(&mut self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let all = self.gather_equal(tensor)?;
        (0..self.world_size()).map(|rank| Ok(all.f_get(rank as i64)?)).collect()
    }

    fn begin_sums(&mut self, values: [f64; 2]) -> Result<Sums> {
        self.meeting.begin_collective();
        Ok(Sums::Pending(self.group.begin_sum(Tensor::f_from_slice(&values)?)?))
    }

    fn broadcast(&mut self, parameters: &Parameters, which: Broadcast) -> Result<()> {
        let entries = parameters.entries();
        let wanted = entries
            .iter()
            .filter(|entry| which == Broadcast::Everything || entry.role == Role::Buffer)
            .map(|entry| &entry.tensor);
        let list = TensorList::new(wanted)?;
        if list.is_empty() {
            return Ok(());
        }
        self.meeting.begin_collective();
        self.group.broadcast(&list, 0)
    }

    fn begin_gradients(&mut self, parameters: &TensorList, loss: &Tensor) -> Result<()> {
        self.meeting.begin_collective();
        self.gradients.begin(&self.group, parameters, loss)
    }

    fn end_gradients(&mut self, parameters: &TensorList) -> Result<()> {
        self.gradients.end(&self.group, parameters)
    }

    fn layout(&mut self) -> Result<Option<Layout>> {
        self.gradients.layout()
    }

    fn set_layout(&mut self, layout: Option<Layout>) {
        self.gradients.set_layout(layout);
    }

    fn stand_in(&mut self, on: bool) {
        stand_in(on);
    }

    fn barrier(&mut self) -> Result<()> {
        self.meeting.begin_collective();
        self.group.barrier()
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        self.barrier()?;
        if self.synchronises_norms {
            synchronise_batch_norm(None)?;
        }
        let Self { group, gradients, .. } = *self;
        drop(gradients);
        drop(ManuallyDrop::into_inner(group));
        Ok(())
    }
}
