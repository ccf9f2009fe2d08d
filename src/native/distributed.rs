//! c10d, libtorch's engine for several processes: the store where they meet, collectives, and the Reducer that sums gradients while the backward
//! pass goes on.
//!
//! A collective is called by every process of a group, in the same order and with tensors of the same shape: where shapes differ, libtorch ends the
//! process. A process that fails or is gone gives the others an error.

use std::ffi::{CString, c_char};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tch::Tensor;

use super::{TensorList, check, ffi, new_tensor, new_text};

/// Keeps c10d from writing about every attempt to connect; `TORCH_CPP_LOG_LEVEL` wins. What matters comes as an error.
pub fn be_quiet() {
    // SAFETY: sets a number.
    unsafe { ffi::suite_distributed_quiet() }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("`{}` has a zero byte", text.escape_debug()))
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Keys and values that all processes see (`c10d::TCPStore`), kept by one of them or by an agent.
pub struct Store(*mut ffi::Store);

// SAFETY: c10d guards a store by a lock of its own.
unsafe impl Send for Store {}

impl Store {
    /// Begins to keep the store at a port (`server`), or connects to it. `size` is the number of processes, `prefix` goes before every key.
    ///
    /// # Errors
    /// The port is taken, or nobody answers within `timeout`.
    pub fn new(
        host: &str,
        port: u16,
        server: bool,
        size: usize,
        timeout: Duration,
        prefix: &str,
    ) -> Result<Self> {
        let (host, prefix, size) = (text(host)?, text(prefix)?, i32::try_from(size)?);
        let mut store = ptr::null_mut();
        let timeout = milliseconds(timeout);
        // SAFETY: the texts live as long as the call.
        check(unsafe {
            ffi::suite_store_new(host.as_ptr(), port, server, size, timeout, prefix.as_ptr(), &mut store)
        })?;
        Ok(Self(store))
    }

    /// A connection of its own to the same store, for another thread: one that waits holds up all who share it.
    pub fn connect_again(&self) -> Result<Self> {
        let mut store = ptr::null_mut();
        // SAFETY: the store is alive.
        check(unsafe { ffi::suite_store_clone(self.0, &mut store) })?;
        Ok(Self(store))
    }

    /// Sets a key.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: store and texts are alive.
        check(unsafe { ffi::suite_store_set(self.0, key.as_ptr(), value.as_ptr()) })
    }

    /// The value of a key, once somebody has set it.
    ///
    /// # Errors
    /// Nobody has within `timeout`.
    pub fn wait(&self, key: &str, timeout: Duration) -> Result<String> {
        let key = text(key)?;
        // SAFETY: store and text are alive.
        new_text(|result| unsafe {
            ffi::suite_store_wait(self.0, key.as_ptr(), milliseconds(timeout), result)
        })
    }

    /// Whether somebody has set a key.
    pub fn has(&self, key: &str) -> Result<bool> {
        let key = text(key)?;
        let mut there = false;
        // SAFETY: store and text are alive.
        check(unsafe { ffi::suite_store_has(self.0, key.as_ptr(), &mut there) })?;
        Ok(there)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the store belongs to this value alone.
        unsafe { ffi::suite_store_free(self.0) }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Store")
    }
}

/// How the processes of a group reach each other.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Network interfaces to use (`GLOO_SOCKET_IFNAME`); none leaves the choice to `address`.
    pub interfaces: Vec<String>,
    /// The address of this machine at which the others reach it; without one, the address of its host name.
    pub address: Option<String>,
    /// The GPU whose gradients NCCL sums.
    pub cuda: Option<usize>,
    /// Whether numbers of the host have connections of their own, so that they do not wait for gradients. Processes of Python do not know of these.
    pub control: bool,
}

/// Processes that train together (`c10d::ProcessGroup`): Gloo for tensors of the host, NCCL for those of GPUs. Names and prefixes are those of
/// `torch.distributed.init_process_group`, so that processes of Python may take part.
pub struct Group {
    group: *mut ffi::Group,
    rank: usize,
    size: usize,
}

impl Group {
    /// Connects all processes; each gives its own rank.
    ///
    /// # Errors
    /// One of them does not come within `timeout`, which is also how long a collective may take.
    pub fn new(
        store: &Store,
        rank: usize,
        size: usize,
        timeout: Duration,
        transport: &Transport,
    ) -> Result<Self> {
        let interfaces =
            transport.interfaces.iter().map(|name| text(name)).collect::<Result<Vec<CString>>>()?;
        let pointers: Vec<*const c_char> = interfaces.iter().map(|name| name.as_ptr()).collect();
        let address = transport.address.as_deref().map(text).transpose()?;
        let cuda = transport.cuda.map_or(Ok(-1), i32::try_from)?;
        let mut group = ptr::null_mut();
        // SAFETY: store and texts live as long as the call.
        check(unsafe {
            ffi::suite_group_new(
                store.0,
                i32::try_from(rank)?,
                i32::try_from(size)?,
                milliseconds(timeout),
                pointers.as_ptr(),
                pointers.len(),
                address.as_ref().map_or(ptr::null(), |address| address.as_ptr()),
                cuda,
                transport.control,
                &mut group,
            )
        })?;
        Ok(Self { group, rank, size })
    }

    /// Whether gradients of GPUs can be summed at all.
    pub fn has_nccl() -> bool {
        // SAFETY: asks for a constant.
        unsafe { ffi::suite_nccl_built() }
    }

    /// The number of this process.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Sums a tensor over all processes, in place.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: group and tensor are alive.
        check(unsafe { ffi::suite_group_sum(self.group, tensor.as_ptr()) })
    }

    /// Begins to sum a tensor of the host.
    pub fn begin_sum(&self, tensor: Tensor) -> Result<PendingSum> {
        let mut pending = ptr::null_mut();
        // SAFETY: group and tensor are alive; the pending sum keeps the tensor.
        check(unsafe { ffi::suite_group_begin_sum(self.group, tensor.as_ptr(), &mut pending) })?;
        Ok(PendingSum { pending, tensor })
    }

    /// The tensors of all processes, which have one shape, stacked in the order of the ranks: `[size, …]`.
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor> {
        // SAFETY: group and tensor are alive.
        new_tensor(|result| unsafe { ffi::suite_group_gather(self.group, tensor.as_ptr(), result) })
    }

    /// Gives tensors the values that they have in process `root`.
    pub fn broadcast(&self, tensors: &TensorList, root: usize) -> Result<()> {
        // SAFETY: group and list are alive.
        check(unsafe { ffi::suite_group_broadcast(self.group, tensors.as_ptr(), i32::try_from(root)?) })
    }

    /// Waits until all processes have come here.
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the group is alive.
        check(unsafe { ffi::suite_group_barrier(self.group) })
    }

    /// Sums the gradients of parameters over all processes, in one piece; one that is not there counts as zeros and is there afterwards.
    pub fn sum_gradients(&self, parameters: &TensorList) -> Result<()> {
        // SAFETY: group and list are alive.
        check(unsafe { ffi::suite_group_sum_gradients(self.group, parameters.as_ptr()) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the group belongs to this value alone.
        unsafe { ffi::suite_group_free(self.group) }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Group").field("rank", &self.rank).field("size", &self.size).finish()
    }
}

/// A sum on its way; it keeps its group alive by itself.
pub struct PendingSum {
    pending: *mut ffi::Pending,
    tensor: Tensor,
}

impl PendingSum {
    /// The sum, once every process has given its part.
    pub fn wait(mut self) -> Result<Tensor> {
        let pending = std::mem::replace(&mut self.pending, ptr::null_mut());
        // SAFETY: the pending sum is alive, and the call frees it.
        check(unsafe { ffi::suite_pending_wait(pending) })?;
        Ok(self.tensor.shallow_clone())
    }
}

impl Drop for PendingSum {
    fn drop(&mut self) {
        // SAFETY: the pending sum belongs to this value alone; null, after a wait, is nothing to free.
        unsafe { ffi::suite_pending_free(self.pending) }
    }
}

/// Which parameters, by their place in a list, are summed together: one list for each bucket, in the order in which buckets are sent.
pub type BucketLayout = Vec<Vec<usize>>;

/// How gradients are cut into buckets and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReducerConfig {
    /// Bytes of the bucket that is sent first.
    pub first_bucket: usize,
    /// Bytes of the others.
    pub bucket: usize,
    /// Whether parameters are looked for, in each step anew, that a loss does not reach.
    pub find_unused: bool,
    /// Whether gradients travel as bfloat16.
    pub compress: bool,
}

/// Buckets of like size, the parameters that were made last in the first.
pub fn bucket_layout(parameters: &TensorList, config: ReducerConfig) -> Result<BucketLayout> {
    // SAFETY: the list is alive.
    let layout = new_text(|result| unsafe {
        ffi::suite_bucket_layout(parameters.as_ptr(), config.first_bucket, config.bucket, result)
    })?;
    parse_layout(&layout)
}

fn parse_layout(text: &str) -> Result<BucketLayout> {
    let bucket = |bucket: &str| -> Result<Vec<usize>> {
        bucket
            .split(',')
            .map(|place| place.parse().map_err(|_| anyhow!("`{bucket}` is no list of places")))
            .collect()
    };
    text.split(';').filter(|bucket| !bucket.is_empty()).map(bucket).collect()
}

/// Sums gradients over all processes while the backward pass goes on (`c10d::Reducer`, the engine of `DistributedDataParallel`), without dividing by
/// the number of processes.
///
/// It keeps the group alive by itself.
pub struct GradientReducer(*mut ffi::GradientReducer);

impl GradientReducer {
    /// Watches over `parameters`, which must have the same shapes in all processes and all be reached by each loss unless unused ones are looked for.
    pub fn new(
        group: &Group,
        parameters: &TensorList,
        layout: &BucketLayout,
        config: ReducerConfig,
    ) -> Result<Self> {
        let places = layout.concat();
        let sizes: Vec<usize> = layout.iter().map(Vec::len).collect();
        let mut reducer = ptr::null_mut();
        // SAFETY: group, list and vectors are alive; there are as many places as the sizes say.
        check(unsafe {
            ffi::suite_reducer_new(
                group.group,
                parameters.as_ptr(),
                places.as_ptr(),
                sizes.as_ptr(),
                sizes.len(),
                config.first_bucket,
                config.bucket,
                config.find_unused,
                config.compress,
                &mut reducer,
            )
        })?;
        Ok(Self(reducer))
    }

    /// Lets the next backward pass, from `loss`, be reduced. Without this call gradients only accumulate.
    pub fn prepare(&self, loss: &Tensor) -> Result<()> {
        // SAFETY: reducer and tensor are alive.
        check(unsafe { ffi::suite_reducer_prepare(self.0, loss.as_ptr()) })
    }

    /// Sorts the parameters into buckets in the order in which their gradients came in the first process; whether that changed anything. A collective,
    /// to be called once, after the first reduced backward pass, with the gradients cleared.
    pub fn rebuild(&self) -> Result<bool> {
        let mut rebuilt = false;
        // SAFETY: the reducer is alive.
        check(unsafe { ffi::suite_reducer_rebuild(self.0, &mut rebuilt) })?;
        Ok(rebuilt)
    }

    /// Puts the parameters into other buckets, with the gradients cleared.
    pub fn set_layout(&self, layout: &BucketLayout) -> Result<()> {
        let places = layout.concat();
        let sizes: Vec<usize> = layout.iter().map(Vec::len).collect();
        // SAFETY: the reducer is alive; there are as many places as the sizes say.
        check(unsafe { ffi::suite_reducer_set_layout(self.0, places.as_ptr(), sizes.as_ptr(), sizes.len()) })
    }

    /// The buckets as they are.
    pub fn layout(&self) -> Result<BucketLayout> {
        // SAFETY: the reducer is alive.
        parse_layout(&new_text(|result| unsafe { ffi::suite_reducer_layout(self.0, result) })?)
    }
}

impl Drop for GradientReducer {
    fn drop(&mut self) {
        // SAFETY: the reducer belongs to this value alone.
        unsafe { ffi::suite_reducer_free(self.0) }
    }
}

static SYNCHRONISES_NORMS: AtomicBool = AtomicBool::new(false);

/// Whether batch normalisation is over several processes.
pub fn synchronises_batch_norm() -> bool {
    SYNCHRONISES_NORMS.load(Ordering::Relaxed)
}

/// Makes [`sync_batch_norm`] take its statistics over a group, or ends that.
pub fn synchronise_batch_norm(group: Option<&Group>) -> Result<()> {
    SYNCHRONISES_NORMS.store(group.is_some(), Ordering::Relaxed);
    let group = group.map_or(ptr::null(), |group| group.group.cast_const());
    // SAFETY: the group is alive; the other side keeps handles of its own.
    check(unsafe { ffi::suite_sync_batch_norm_over(group) })
}

/// Says whether what this process computes counts for nothing in the statistics of [`sync_batch_norm`]: it has no sample of a batch, but the others wait
/// for it.
pub fn stand_in(on: bool) {
    // SAFETY: sets a truth value.
    unsafe { ffi::suite_sync_batch_norm_stand_in(on) }
}

/// `torch.nn.SyncBatchNorm` in training: `[batch, channels, …]` normalised by the statistics of all processes, with gradients, changing the running
/// statistics. A collective, also in the backward pass.
///
/// # Errors
/// [`synchronise_batch_norm`] has named no group, or a process is gone.
pub fn sync_batch_norm(
    input: &Tensor,
    [weight, bias]: [&Tensor; 2],
    [running_mean, running_var]: [&Tensor; 2],
    momentum: f64,
    eps: f64,
) -> Result<Tensor> {
    // SAFETY: the tensors are alive.
    new_tensor(|result| unsafe {
        ffi::suite_sync_batch_norm(
            input.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            running_mean.as_ptr(),
            running_var.as_ptr(),
            momentum,
            eps,
            result,
        )
    })
}
