//! Which pixels an image classifier's answer comes from.
//!
//! Grad-CAM (Selvaraju et al., 2016), integrated gradients (Sundararajan, Taly, Yan, 2017) and occlusion (Zeiler, Fergus, 2013), with the arithmetic of captum's
//! `LayerGradCam` on the last maps, `IntegratedGradients` and `Occlusion`. All explain a logit.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::image_classification::ImageClassification;
use crate::bail_input;

/// Ways to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The maps before pooling, weighted by how the class depends on each: coarse, cheap; for networks with convolutions.
    GradCam,
    /// Gradients summed along the way from a black image: exact for each pixel, and they add up to the class's score.
    IntegratedGradients,
    /// How much the class loses when a square is covered.
    Occlusion,
}

/// Which pixels speak for a class.
#[derive(Debug)]
pub struct Explanation {
    /// The class.
    pub class: i64,
    /// How probable the model finds it.
    pub probability: f64,
    /// `[height, width]` of the input, float32 on the CPU: what speaks for the class is positive.
    pub map: Tensor,
    /// Of integrated gradients: |sum of the map − (score − score of the black image)| as a share of the latter.
    pub gap: Option<f64>,
}

/// Points on the way from black to the image, at least and at most: until the gap is below [`SMALL_GAP`].
const LEAST_POINTS: usize = 32;
const MOST_POINTS: usize = 2048;
const SMALL_GAP: f64 = 0.01;
/// Images computed at a time.
const CHUNK: usize = 32;

/// Explains one image, `[1, channels, height, width]` bytes on the model's device: the class given, or the most probable.
///
/// # Errors
/// Grad-CAM is asked of a network that has no maps.
pub fn explain(
    task: &ImageClassification,
    pixels: &Tensor,
    class: Option<i64>,
    method: Method,
) -> Result<Explanation> {
    let input = task.normalise(pixels)?;
    let (class, probability) = {
        let _no_gradients = tch::no_grad_guard();
        let probabilities = task.probabilities(&task.model().forward(&input, false))?;
        let class = match class {
            Some(class) => class,
            None => probabilities.f_argmax(-1, false)?.f_int64_value(&[0])?,
        };
        (class, probabilities.f_double_value(&[0, class])?)
    };
    let (map, gap) = match method {
        Method::GradCam => (grad_cam(task, &input, class)?, None),
        Method::IntegratedGradients => {
            let black = task.normalise(&pixels.f_zeros_like()?)?;
            let (parts, gap) = integrated_gradients(task, &input, &black, class)?;
            // [1, channels, height, width] to [height, width]
            (parts.f_sum_dim_intlist(&[0i64, 1][..], false, Kind::Float)?, Some(gap))
        }
        Method::Occlusion => {
            let shortest = input.size()[2..].iter().copied().min().unwrap_or(1);
            let side = (shortest / 8).max(1);
            (occlusion(task, &input, class, side, (side / 2).max(1))?, None)
        }
    };
    // Pictures are drawn on the CPU.
    Ok(Explanation { class, probability, map: map.detach().f_to_device(tch::Device::Cpu)?, gap })
}

/// The score of the class, `[batch]`.
fn score(task: &ImageClassification, input: &Tensor, class: i64) -> Result<Tensor> {
    Ok(task.model().forward(input, false).f_select(1, class)?)
}

/// The derivative of a sum of scores by a tensor that requires gradients.
fn gradient(scores: &Tensor, by: &Tensor) -> Result<Tensor> {
    let gradients = Tensor::f_run_backward(&[scores.f_sum(Kind::Float)?], &[by], false, false)
        .context("computing the gradients of a score")?;
    gradients.into_iter().next().context("a score has no gradient")
}

/// The maps' mean weighted by their mean gradients, what is negative cut off, brought to the input's size: `[height, width]`.
pub fn grad_cam(task: &ImageClassification, input: &Tensor, class: i64) -> Result<Tensor> {
    let model = task.model();
    let maps = {
        let _no_gradients = tch::no_grad_guard();
        model.maps(input, false)
    };
    if maps.dim() != 4 {
        bail_input!(
            "grad-cam needs a network with convolutions, whose maps keep the places of the image: take integrated-gradients or occlusion"
        );
    }
    let maps = maps.detach().set_requires_grad(true);
    let scores = model.head(&model.pool(&maps, false), false).f_select(1, class)?;
    // [1, maps, rows, columns] to [1, maps, 1, 1]
    let weights = gradient(&scores, &maps)?.f_mean_dim(&[2i64, 3][..], true, Kind::Float)?;
    let _no_gradients = tch::no_grad_guard();
    let cam = maps.f_mul(&weights)?.f_sum_dim_intlist(1i64, true, Kind::Float)?.f_relu()?;
    let size = &input.size()[2..];
    Ok(cam.f_upsample_bilinear2d(size, false, None, None)?.f_squeeze()?)
}

/// (input − baseline) · mean gradient on the way between them, `[1, channels, height, width]`, and the gap in what they add up to.
pub fn integrated_gradients(
    task: &ImageClassification,
    input: &Tensor,
    baseline: &Tensor,
    class: i64,
) -> Result<(Tensor, f64)> {
    let whole = {
        let _no_gradients = tch::no_grad_guard();
        let scores = score(task, &Tensor::f_cat(&[input, baseline], 0)?, class)?;
        scores.f_double_value(&[0])? - scores.f_double_value(&[1])?
    };
    // The trapezoidal rule, each time with the points in the middles of those before.
    let mut parts = mean_gradients(task, input, baseline, class, &[0.0, 1.0])?;
    let mut points = 1;
    loop {
        parts = parts
            .f_add(&integrated_gradients_at(task, input, baseline, class, points)?)?
            .f_div_scalar(2.0)?;
        points *= 2;
        let gap = (parts.f_sum(Kind::Double)?.f_double_value(&[])? - whole).abs() / whole.abs().max(1e-12);
        if (gap <= SMALL_GAP && points >= LEAST_POINTS) || points >= MOST_POINTS {
            return Ok((parts, gap));
        }
    }
}

/// The same by the midpoint rule with so many points.
pub fn integrated_gradients_at(
    task: &ImageClassification,
    input: &Tensor,
    baseline: &Tensor,
    class: i64,
    points: usize,
) -> Result<Tensor> {
    let middles: Vec<f32> = (0..points).map(|point| (point as f32 + 0.5) / points as f32).collect();
    mean_gradients(task, input, baseline, class, &middles)
}

/// (input − baseline) · mean gradient at some places on the way, given as shares of it.
fn mean_gradients(
    task: &ImageClassification,
    input: &Tensor,
    baseline: &Tensor,
    class: i64,
    places: &[f32],
) -> Result<Tensor> {
    let way = input.f_sub(baseline)?;
    let mut sum = way.f_zeros_like()?;
    for shares in places.chunks(CHUNK) {
        let shares = Tensor::f_from_slice(shares)?.f_to_device(input.device())?.f_view([-1, 1, 1, 1])?;
        let images = baseline.f_add(&way.f_mul(&shares)?)?.detach().set_requires_grad(true);
        let gradients = gradient(&score(task, &images, class)?, &images)?;
        sum = sum.f_add(&gradients.f_sum_dim_intlist(0i64, true, Kind::Float)?)?;
    }
    Ok(sum.f_mul(&way)?.f_div_scalar(places.len() as f64)?)
}

/// The mean loss of score over all positions of a square that cover a pixel, `[height, width]`. Squares are filled with 0, the mean colour, and lie `stride`
/// pixels apart; at the far border they are cut.
pub fn occlusion(
    task: &ImageClassification,
    input: &Tensor,
    class: i64,
    side: i64,
    stride: i64,
) -> Result<Tensor> {
    let _no_gradients = tch::no_grad_guard();
    let [height, width] = [input.size()[2], input.size()[3]];
    let starts = |length: i64| {
        let positions = (length - side).max(0).unsigned_abs().div_ceil(stride.unsigned_abs()) as i64 + 1;
        (0..positions).map(move |position| position * stride)
    };
    let squares: Vec<[i64; 4]> = starts(height)
        .flat_map(|top| {
            starts(width).map(move |left| [top, left, side.min(height - top), side.min(width - left)])
        })
        .collect();
    let plain = score(task, input, class)?.f_double_value(&[0])?;
    let mut sum = Tensor::f_zeros([height, width], (Kind::Float, input.device()))?;
    let covered = sum.f_zeros_like()?;
    let square = |tensor: &Tensor, [top, left, rows, columns]: [i64; 4]| {
        tensor.f_narrow(-2, top, rows)?.f_narrow(-1, left, columns)
    };
    for chunk in squares.chunks(CHUNK) {
        let images = input.f_repeat([chunk.len() as i64, 1, 1, 1])?;
        for (image, place) in chunk.iter().enumerate() {
            let _ = square(&images.f_get(image as i64)?, *place)?.f_fill_(0.0)?;
        }
        let scores = Vec::<f64>::try_from(score(task, &images, class)?.f_to_kind(Kind::Double)?)?;
        for (place, score) in chunk.iter().zip(scores) {
            let _ = square(&sum, *place)?.f_add_scalar_(plain - score)?;
            let _ = square(&covered, *place)?.f_add_scalar_(1.0)?;
        }
    }
    sum = sum.f_div(&covered.f_clamp_min(1.0)?)?;
    Ok(sum)
}
