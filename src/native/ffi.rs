//! Declarations of the C functions of `src/native/cpp`.
//!
//! Each returns null or a message, see `shim.h`; [`check`](super::check) turns that into a `Result`.

use std::ffi::{c_char, c_void};
use torch_sys::C_tensor;

/// A `std::vector<at::Tensor>`.
#[repr(C)]
pub struct TensorVector {
    _private: [u8; 0],
}

/// A `c10::InferenceMode`.
#[repr(C)]
pub struct InferenceModeGuard {
    _private: [u8; 0],
}

/// A `SuiteValue`.
#[repr(C)]
pub struct ScriptValue {
    _private: [u8; 0],
}

/// A `torch::jit::Module`.
#[repr(C)]
#[derive(Debug)]
pub struct ScriptModule {
    _private: [u8; 0],
}

/// A `Package`.
#[repr(C)]
#[derive(Debug)]
pub struct CompiledPackage {
    _private: [u8; 0],
}

/// A `StoreHandle`.
#[repr(C)]
#[derive(Debug)]
pub struct Store {
    _private: [u8; 0],
}

/// A `suite::Group`.
#[repr(C)]
#[derive(Debug)]
pub struct Group {
    _private: [u8; 0],
}

/// A `Pending`.
#[repr(C)]
#[derive(Debug)]
pub struct Pending {
    _private: [u8; 0],
}

/// A `GradientReducer`.
#[repr(C)]
#[derive(Debug)]
pub struct GradientReducer {
    _private: [u8; 0],
}

/// A message to check and free, or null.
#[must_use]
#[repr(transparent)]
pub struct Outcome(pub *mut c_char);

/// The traced pass: borrowed inputs, outputs to append to; true if it succeeded.
pub type Forward = unsafe extern "C" fn(
    context: *mut c_void,
    inputs: *const *mut C_tensor,
    count: usize,
    outputs: *mut TensorVector,
) -> bool;

/// A part of a network: borrows the input, makes a new output; false with a message of at most `capacity` bytes if it failed.
pub type Segment = unsafe extern "C" fn(
    context: *mut c_void,
    input: *mut C_tensor,
    output: *mut *mut C_tensor,
    message: *mut c_char,
    capacity: usize,
) -> bool;

#[repr(C)]
pub struct Sgd {
    pub momentum: f64,
    pub dampening: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
}

#[repr(C)]
pub struct Adam {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub amsgrad: bool,
    pub decoupled: bool,
}

#[repr(C)]
pub struct Adagrad {
    pub lr_decay: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

#[repr(C)]
pub struct RmsProp {
    pub alpha: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub momentum: f64,
    pub centered: bool,
}

#[repr(C)]
pub struct Heap {
    pub glibc: bool,
    pub mmap_threshold: i64,
    pub never_trims: bool,
}

#[repr(C)]
pub struct CudaDevice {
    pub name: [c_char; 256],
    pub total_memory: u64,
    pub major: i32,
    pub minor: i32,
}

/// A convolution as `inference.cpp` takes it.
#[repr(C)]
pub struct Convolution {
    pub weight: Tensor,
    pub bias: Tensor,
    pub stride: i64,
    pub padding: [i64; 2],
    pub dilation: i64,
    pub groups: i64,
}

/// A batch normalisation in evaluation as `inference.cpp` takes it.
#[repr(C)]
pub struct Norm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub running_mean: Tensor,
    pub running_var: Tensor,
    pub eps: f64,
}

type List = *const TensorVector;
type Lists = *const List;
type Tensor = *const C_tensor;

unsafe extern "C" {
    // tensor_list.cpp
    pub fn suite_free_text(text: *mut c_char);
    #[cfg(test)]
    pub fn suite_treat_cpu_as_a_device(on: bool);
    pub fn suite_list_new(tensors: *const Tensor, count: usize, result: *mut *mut TensorVector) -> Outcome;
    pub fn suite_list_free(list: *mut TensorVector);
    pub fn suite_list_lerp(targets: List, sources: List, weight: f64) -> Outcome;

    // gradients.cpp
    pub fn suite_gradients_norm(parameters: List, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_gradients_clip_by_norm(parameters: List, total_norm: Tensor, max_norm: f64) -> Outcome;
    pub fn suite_gradients_clip_by_value(parameters: List, limit: f64) -> Outcome;
    pub fn suite_gradients_clear(parameters: List) -> Outcome;
    pub fn suite_gradients_add_penalty(parameters: List, l1: f64, l2: f64) -> Outcome;
    pub fn suite_gradients_scale(parameters: List, factor: f64) -> Outcome;
    pub fn suite_gradients_scale_by(parameters: List, factor: Tensor) -> Outcome;
    pub fn suite_watch_finite(values: *const Tensor, count: usize, step: i64, first_bad: Tensor) -> Outcome;

    // loss_scaling.cpp
    pub fn suite_unscale(parameters: List, found_inf: Tensor, inverse_scale: Tensor) -> Outcome;
    pub fn suite_update_scale(
        scale: Tensor,
        growth_tracker: Tensor,
        found_inf: Tensor,
        growth_factor: f64,
        backoff_factor: f64,
        growth_interval: i64,
    ) -> Outcome;

    // optimizers.cpp
    pub fn suite_sgd_step(
        rule: *const Sgd,
        parameters: List,
        state: Lists,
        states: usize,
        lr: f64,
        found_inf: Tensor,
    ) -> Outcome;
    pub fn suite_adam_step(
        rule: *const Adam,
        parameters: List,
        state: Lists,
        states: usize,
        lr: f64,
        found_inf: Tensor,
    ) -> Outcome;
    pub fn suite_adagrad_step(
        rule: *const Adagrad,
        parameters: List,
        state: Lists,
        states: usize,
        lr: f64,
        found_inf: Tensor,
    ) -> Outcome;
    pub fn suite_rms_prop_step(
        rule: *const RmsProp,
        parameters: List,
        state: Lists,
        states: usize,
        lr: f64,
        found_inf: Tensor,
    ) -> Outcome;

    // modes.cpp
    pub fn suite_autocast_enter(
        device: i8,
        enabled: bool,
        kind: i8,
        previously_enabled: *mut bool,
        previous_kind: *mut i8,
    ) -> Outcome;
    pub fn suite_autocast_exit(device: i8, previously_enabled: bool, previous_kind: i8) -> Outcome;

    // random.cpp
    pub fn suite_manual_seed(seed: u64) -> Outcome;
    pub fn suite_rng_state(device: i8, index: i8, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_set_rng_state(device: i8, index: i8, state: Tensor) -> Outcome;
    pub fn suite_permutation(count: i64, seed: u64, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_draw(weights: Tensor, count: i64, seed: u64, result: *mut *mut C_tensor) -> Outcome;

    // dropout.cpp
    pub fn suite_masks_of_pytorch() -> bool;
    pub fn suite_dropout(input: Tensor, probability: f64, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        probability: f64,
        scale: f64,
        result: *mut *mut C_tensor,
    ) -> Outcome;

    // inference.cpp
    pub fn suite_inference_mode_enter(result: *mut *mut InferenceModeGuard) -> Outcome;
    pub fn suite_inference_mode_exit(mode: *mut InferenceModeGuard);
    pub fn suite_packed_convolution(
        input: Tensor,
        convolution: *const Convolution,
        norm: *const Norm,
        relu: bool,
        result: *mut *mut C_tensor,
    ) -> Outcome;
    pub fn suite_largest_of_windows(
        input: Tensor,
        size: i64,
        stride: i64,
        padding: i64,
        ceil: bool,
        result: *mut *mut C_tensor,
    ) -> Outcome;
    pub fn suite_packed_linear(
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        result: *mut *mut C_tensor,
    ) -> Outcome;

    // kernels.cpp
    pub fn suite_mkl_kernels(was_asked: *mut bool, chosen_by_maker: *mut bool);

    // layout.cpp
    pub fn suite_channels_last(tensor: Tensor, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_is_channels_last(tensor: Tensor, result: *mut bool) -> Outcome;

    // checkpoint.cpp
    pub fn suite_checkpoint(
        input: Tensor,
        compute: Segment,
        release: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
        result: *mut *mut C_tensor,
    ) -> Outcome;

    // trace.cpp
    pub fn suite_trace_output(outputs: *mut TensorVector, tensor: Tensor);
    pub fn suite_trace_module(
        class_name: *const c_char,
        names: *const *const c_char,
        tensors: *const Tensor,
        are_buffers: *const bool,
        tensor_count: usize,
        input_names: *const *const c_char,
        inputs: *const Tensor,
        input_count: usize,
        used_only: bool,
        forward: Forward,
        context: *mut c_void,
        path: *const c_char,
    ) -> Outcome;

    // script.cpp
    pub fn suite_value_new(
        kind: i32,
        integer: i64,
        number: f64,
        text: *const c_char,
        length: usize,
        tensor: Tensor,
    ) -> *mut ScriptValue;
    pub fn suite_value_push(parent: *mut ScriptValue, child: *mut ScriptValue);
    pub fn suite_value_free(value: *mut ScriptValue);
    pub fn suite_value_kind(value: *const ScriptValue) -> i32;
    pub fn suite_value_integer(value: *const ScriptValue) -> i64;
    pub fn suite_value_number(value: *const ScriptValue) -> f64;
    pub fn suite_value_text(value: *const ScriptValue, length: *mut usize) -> *const c_char;
    pub fn suite_value_tensor(value: *const ScriptValue, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_value_size(value: *const ScriptValue) -> usize;
    pub fn suite_value_child(value: *const ScriptValue, place: usize) -> *const ScriptValue;
    pub fn suite_script_load(
        path: *const c_char,
        device: i8,
        index: i8,
        result: *mut *mut ScriptModule,
    ) -> Outcome;
    pub fn suite_script_free(module: *mut ScriptModule);
    pub fn suite_script_save(module: *const ScriptModule, path: *const c_char) -> Outcome;
    pub fn suite_script_train(module: *mut ScriptModule, on: bool) -> Outcome;
    pub fn suite_script_freeze(
        module: *const ScriptModule,
        kept: *const *const c_char,
        count: usize,
        result: *mut *mut ScriptModule,
    ) -> Outcome;
    pub fn suite_script_quantize(
        module: *const ScriptModule,
        kept: *const *const c_char,
        count: usize,
        result: *mut *mut ScriptModule,
        layers: *mut usize,
    ) -> Outcome;
    pub fn suite_script_cast(module: *mut ScriptModule, kind: i8) -> Outcome;
    pub fn suite_script_methods(module: *const ScriptModule, result: *mut *mut c_char) -> Outcome;
    pub fn suite_script_schema(
        module: *const ScriptModule,
        method: *const c_char,
        result: *mut *mut c_char,
    ) -> Outcome;
    pub fn suite_script_arguments(
        module: *const ScriptModule,
        method: *const c_char,
        result: *mut *mut c_char,
    ) -> Outcome;
    pub fn suite_script_tensors(
        module: *const ScriptModule,
        buffers: bool,
        names: *mut *mut c_char,
        tensors: *mut *mut TensorVector,
    ) -> Outcome;
    pub fn suite_list_size(list: List) -> usize;
    pub fn suite_list_get(list: List, place: usize, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_script_call(
        module: *const ScriptModule,
        method: *const c_char,
        arguments: *const ScriptValue,
        device: i8,
        index: i8,
        result: *mut *mut ScriptValue,
    ) -> Outcome;
    pub fn suite_script_forward(
        module: *const ScriptModule,
        method: *const c_char,
        inputs: *const Tensor,
        count: usize,
        output: *const c_char,
        result: *mut *mut C_tensor,
    ) -> Outcome;
    pub fn suite_script_save_with_head(
        module: *const ScriptModule,
        method: *const c_char,
        output: *const c_char,
        arguments: *const c_char,
        lines: *const c_char,
        weight: Tensor,
        bias: Tensor,
        path: *const c_char,
    ) -> Outcome;
    pub fn suite_script_optimise(on: bool);
    pub fn suite_package_load(path: *const c_char, index: i8, result: *mut *mut CompiledPackage) -> Outcome;
    pub fn suite_package_free(package: *mut CompiledPackage);
    pub fn suite_package_run(
        package: *mut CompiledPackage,
        inputs: List,
        outputs: *mut *mut TensorVector,
    ) -> Outcome;
    pub fn suite_package_specification(package: *mut CompiledPackage, result: *mut *mut c_char) -> Outcome;

    // distributed.cpp
    pub fn suite_distributed_quiet();
    pub fn suite_store_new(
        host: *const c_char,
        port: u16,
        server: bool,
        size: i32,
        timeout: i64,
        prefix: *const c_char,
        result: *mut *mut Store,
    ) -> Outcome;
    pub fn suite_store_clone(store: *mut Store, result: *mut *mut Store) -> Outcome;
    pub fn suite_store_free(store: *mut Store);
    pub fn suite_store_set(store: *mut Store, key: *const c_char, value: *const c_char) -> Outcome;
    pub fn suite_store_wait(
        store: *mut Store,
        key: *const c_char,
        timeout: i64,
        result: *mut *mut c_char,
    ) -> Outcome;
    pub fn suite_store_has(store: *mut Store, key: *const c_char, result: *mut bool) -> Outcome;
    pub fn suite_group_new(
        store: *mut Store,
        rank: i32,
        size: i32,
        timeout: i64,
        interfaces: *const *const c_char,
        interface_count: usize,
        address: *const c_char,
        cuda: i32,
        with_control: bool,
        result: *mut *mut Group,
    ) -> Outcome;
    pub fn suite_group_free(group: *mut Group);
    pub fn suite_nccl_built() -> bool;
    pub fn suite_group_sum(group: *const Group, tensor: Tensor) -> Outcome;
    pub fn suite_group_begin_sum(group: *const Group, tensor: Tensor, result: *mut *mut Pending) -> Outcome;
    pub fn suite_pending_wait(pending: *mut Pending) -> Outcome;
    pub fn suite_pending_free(pending: *mut Pending);
    pub fn suite_group_gather(group: *const Group, tensor: Tensor, result: *mut *mut C_tensor) -> Outcome;
    pub fn suite_group_broadcast(group: *const Group, tensors: List, root: i32) -> Outcome;
    pub fn suite_group_barrier(group: *const Group) -> Outcome;
    pub fn suite_group_sum_gradients(group: *const Group, parameters: List) -> Outcome;
    pub fn suite_bucket_layout(
        parameters: List,
        first: usize,
        cap: usize,
        result: *mut *mut c_char,
    ) -> Outcome;
    pub fn suite_reducer_new(
        group: *const Group,
        parameters: List,
        places: *const usize,
        sizes: *const usize,
        buckets: usize,
        first: usize,
        cap: usize,
        find_unused: bool,
        compress: bool,
        result: *mut *mut GradientReducer,
    ) -> Outcome;
    pub fn suite_reducer_free(reducer: *mut GradientReducer);
    pub fn suite_reducer_prepare(reducer: *mut GradientReducer, loss: Tensor) -> Outcome;
    pub fn suite_reducer_rebuild(reducer: *mut GradientReducer, rebuilt: *mut bool) -> Outcome;
    pub fn suite_reducer_set_layout(
        reducer: *mut GradientReducer,
        places: *const usize,
        sizes: *const usize,
        buckets: usize,
    ) -> Outcome;
    pub fn suite_reducer_layout(reducer: *const GradientReducer, result: *mut *mut c_char) -> Outcome;

    // sync_batch_norm.cpp
    pub fn suite_sync_batch_norm_over(group: *const Group) -> Outcome;
    pub fn suite_sync_batch_norm_stand_in(on: bool);
    pub fn suite_sync_batch_norm(
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: f64,
        eps: f64,
        result: *mut *mut C_tensor,
    ) -> Outcome;

    // system.cpp
    pub fn suite_tune_heap(heap: *mut Heap);
    pub fn suite_release_unused_memory();
    pub fn suite_peak_memory(bytes: *mut u64) -> Outcome;
    pub fn suite_libtorch_path(result: *mut *mut c_char) -> Outcome;
    pub fn suite_allocator_path(result: *mut *mut c_char) -> Outcome;
    pub fn suite_cpu_capability(result: *mut *mut c_char) -> Outcome;
    pub fn suite_parallel_info(result: *mut *mut c_char) -> Outcome;
    pub fn suite_threads(intra_op: *mut u64, inter_op: *mut u64) -> Outcome;
    pub fn suite_cuda_linked(result: *mut bool) -> Outcome;
    pub fn suite_try_device(device: i8, index: i8) -> Outcome;
    pub fn suite_mps_usable(result: *mut bool) -> Outcome;
    pub fn suite_cuda_device_count(count: *mut i32) -> Outcome;
    pub fn suite_cuda_device(index: i32, result: *mut CudaDevice) -> Outcome;
    pub fn suite_cpu_bf16(result: *mut bool) -> Outcome;
    pub fn suite_mps_bf16(result: *mut bool) -> Outcome;
    pub fn suite_set_deterministic(on: bool) -> Outcome;
    pub fn suite_set_flush_denormal(on: bool, supported: *mut bool) -> Outcome;
    pub fn suite_set_float32_matmul_precision(precision: *const c_char) -> Outcome;
}
