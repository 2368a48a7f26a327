// Grouped convolution for CPUs, float32, NHWC, stride 1: the two operations of grouped_conv.py.
//
// XLA's general convolution does not exploit that a group's 16 channels fill one or two vector registers, and is slow for
// few channels. Here a task is one group of one image (of several, if they are small) and some of its channels: they are
// packed, zero-padded, into a contiguous buffer that stays in cache, and registers accumulate over taps and input
// channels. The order of summation does not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// The floats of a register, how many registers sum at a time (AVX-512 has 32, AVX2 has 16), and how many hold the 16
// output channels of a block. Compilers do badly with vectors that are wider than a register.
#ifdef __AVX512F__
constexpr int kLanes = 16, kSums = 16, kRegisters = 1;
#else
constexpr int kLanes = 8, kSums = 8, kRegisters = 2;
#endif

// A convolution's task has about so many output channels and, at least, pixels; a weight gradient's so many input
// channels, and sums so many pixels at a time.
constexpr int64_t kOutputsOfTask = 64, kPixelsOfTask = 64, kInputsOfTask = 32, kPixelsOfRows = 64;

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

inline Vector Load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void Store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

struct Shape {
  int64_t batch, height, width;              // of the input
  int64_t out_height, out_width;             // of the output
  int64_t kernel_height, kernel_width;
  int64_t groups, inputs, outputs;           // channels per group
  int64_t top, left;                         // padding
  int64_t padded_height() const { return out_height + kernel_height - 1; }
  int64_t padded_width() const { return out_width + kernel_width - 1; }
};

// Runs task(0) ... task(count - 1) on XLA's threads and on the calling one, so that it never waits for a thread that
// the pool does not have.
template <typename Task>
void ParallelFor(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, count, &task] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++mine) task(i);
    if (mine == 0) return;  // `task` may be gone
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += mine) == count) shared->all_done.notify_one();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads() - 1, count - 1);
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

float* Scratch(int64_t size, int slot) {
  thread_local std::vector<float> buffers[2];
  if (static_cast<int64_t>(buffers[slot].size()) < size) buffers[slot].resize(size);
  return buffers[slot].data();
}

// `channels` channels of one image, from `image` on, zero-padded: [padded_height, padded_width, channels].
void PackPadded(const Shape& s, const float* image, int64_t channels, float* packed) {
  const int64_t stride = s.groups * s.inputs, row = s.padded_width() * channels;
  for (int64_t h = 0; h < s.padded_height(); ++h, packed += row) {
    const int64_t source = h - s.top;
    if (source < 0 || source >= s.height) {
      std::memset(packed, 0, row * sizeof(float));
      continue;
    }
    for (int64_t w = 0; w < s.padded_width(); ++w) {
      const int64_t column = w - s.left;
      float* to = packed + w * channels;
      if (column < 0 || column >= s.width) {
        std::memset(to, 0, channels * sizeof(float));
      } else {
        std::memcpy(to, image + (source * s.width + column) * stride, channels * sizeof(float));
      }
    }
  }
}

// `Pixels` neighbouring outputs of one row, `Registers` registers of output channels.
template <int Pixels, int Registers>
inline void ConvPixels(const Shape& s, const float* packed, const float* kernel, float* out, int64_t out_stride) {
  Vector sum[Pixels][Registers] = {};
  const int64_t row = s.padded_width() * s.inputs;
  for (int64_t i = 0; i < s.kernel_height; ++i) {
    // Along a row, taps and their channels are contiguous both in the image and in the kernel.
    const float* x = packed + i * row;
    const int64_t terms = s.kernel_width * s.inputs;
    for (int64_t k = 0; k < terms; ++k, kernel += Registers * kLanes) {
      Vector weight[Registers];
#pragma GCC unroll 16
      for (int r = 0; r < Registers; ++r) weight[r] = Load(kernel + r * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 16
        for (int r = 0; r < Registers; ++r) sum[p][r] += x[p * s.inputs + k] * weight[r];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < Registers; ++r) Store(out + p * out_stride + r * kLanes, sum[p][r]);
  }
}

// Of one group: its output channels from `first` to `last`, of the images from `image` to `end`.
void ConvTask(const Shape& s, const float* x, const float* kernels, float* y, int64_t group, int64_t image, int64_t end,
              int64_t first, int64_t last) {
  constexpr int kPixels = kSums / kRegisters, kWidth = kRegisters * kLanes;
  const int64_t packed_row = s.padded_width() * s.inputs, packed_size = s.padded_height() * packed_row;
  const int64_t terms = s.kernel_height * s.kernel_width * s.inputs, stride = s.groups * s.outputs;
  float* packed = Scratch((end - image) * packed_size, 0);
  float* kernel = Scratch(terms * kWidth, 1);
  for (int64_t n = image; n < end; ++n) {
    const float* from = x + n * s.height * s.width * s.groups * s.inputs + group * s.inputs;
    PackPadded(s, from, s.inputs, packed + (n - image) * packed_size);
  }
  for (int64_t block = first; block < last; block += kWidth) {
    const float* from = kernels + group * s.outputs + block;
    for (int64_t k = 0; k < terms; ++k) std::memcpy(kernel + k * kWidth, from + k * stride, kWidth * sizeof(float));
    for (int64_t h = 0; h < (end - image) * s.out_height; ++h) {
      const float* row = packed + h / s.out_height * packed_size + h % s.out_height * packed_row;
      float* out = y + (image * s.out_height + h) * s.out_width * stride + group * s.outputs + block;
      int64_t w = 0;
      for (; w + kPixels <= s.out_width; w += kPixels) {
        ConvPixels<kPixels, kRegisters>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      }
      for (; w + 8 <= s.out_width; w += 8) {
        ConvPixels<8, kRegisters>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      }
      for (; w + 4 <= s.out_width; w += 4) {
        ConvPixels<4, kRegisters>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      }
      for (; w < s.out_width; ++w) {
        ConvPixels<1, kRegisters>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      }
    }
  }
}

// The gradient of one tap, `Inputs` of the packed input channels and one block of output channels, summed over `rows`.
template <int Inputs, int Registers>
inline void TapGradient(const Shape& s, const float* packed, int64_t channels, const float* dy, int64_t rows,
                        float* sum) {
  Vector total[Inputs][Registers];
#pragma GCC unroll 16
  for (int i = 0; i < Inputs; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < Registers; ++r) total[i][r] = Load(sum + (i * Registers + r) * kLanes);
  }
  for (int64_t h = 0; h < rows; ++h) {
    const float* x = packed + h * s.padded_width() * channels;
    for (int64_t w = 0; w < s.out_width; ++w, x += channels, dy += Registers * kLanes) {
      Vector d[Registers];
#pragma GCC unroll 16
      for (int r = 0; r < Registers; ++r) d[r] = Load(dy + r * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < Inputs; ++i) {
#pragma GCC unroll 16
        for (int r = 0; r < Registers; ++r) total[i][r] += x[i] * d[r];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Inputs; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < Registers; ++r) Store(sum + (i * Registers + r) * kLanes, total[i][r]);
  }
}

// Of one group: one block of its output channels, from `block` on, and its input channels from `first` to `last`, over
// all images.
void WeightGradientTask(const Shape& s, const float* x, const float* dys, float* dw, int64_t group, int64_t block,
                        int64_t first, int64_t last) {
  constexpr int kInputs = kSums / kRegisters, kWidth = kRegisters * kLanes;
  const int64_t channels = last - first, taps = s.kernel_height * s.kernel_width;
  const int64_t packed_size = s.padded_height() * s.padded_width() * channels;
  const int64_t pixels = s.out_height * s.out_width, stride = s.groups * s.outputs;
  float* packed = Scratch(packed_size + pixels * kWidth, 0);
  float* dy = packed + packed_size;
  float* sums = Scratch(taps * channels * kWidth, 1);
  std::memset(sums, 0, taps * channels * kWidth * sizeof(float));
  const int64_t rows = std::max<int64_t>(1, kPixelsOfRows / s.out_width);
  for (int64_t image = 0; image < s.batch; ++image) {
    PackPadded(s, x + image * s.height * s.width * s.groups * s.inputs + group * s.inputs + first, channels, packed);
    const float* from = dys + image * pixels * stride + group * s.outputs + block;
    for (int64_t p = 0; p < pixels; ++p) std::memcpy(dy + p * kWidth, from + p * stride, kWidth * sizeof(float));
    for (int64_t h = 0; h < s.out_height; h += rows) {
      const int64_t count = std::min(rows, s.out_height - h);
      const float* d = dy + h * s.out_width * kWidth;
      float* sum = sums;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t i = tap / s.kernel_width, j = tap % s.kernel_width;
        const float* at = packed + ((h + i) * s.padded_width() + j) * channels;
        int64_t c = 0;
        for (; c + kInputs <= channels; c += kInputs, sum += kInputs * kWidth) {
          TapGradient<kInputs, kRegisters>(s, at + c, channels, d, count, sum);
        }
        for (; c + 4 <= channels; c += 4, sum += 4 * kWidth) {
          TapGradient<4, kRegisters>(s, at + c, channels, d, count, sum);
        }
        for (; c < channels; ++c, sum += kWidth) TapGradient<1, kRegisters>(s, at + c, channels, d, count, sum);
      }
    }
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < channels; ++c) {
      float* to = dw + (tap * s.inputs + first + c) * stride + group * s.outputs + block;
      std::memcpy(to, sums + (tap * channels + c) * kWidth, kWidth * sizeof(float));
    }
  }
}

using Tensor = ffi::Buffer<ffi::F32, 4>;

ffi::Error Conv(ffi::ThreadPool pool, Tensor x, Tensor kernel, ffi::Result<Tensor> y, int64_t groups, int64_t top,
                int64_t left) {
  const auto xs = x.dimensions(), ks = kernel.dimensions(), ys = y->dimensions();
  const Shape s{xs[0], xs[1], xs[2], ys[1], ys[2], ks[0], ks[1], groups, ks[2], ks[3] / groups, top, left};
  const int64_t images = std::max<int64_t>(1, kPixelsOfTask / (s.out_height * s.out_width));
  const int64_t chunks = (s.batch + images - 1) / images, parts = (s.outputs + kOutputsOfTask - 1) / kOutputsOfTask;
  ParallelFor(pool, chunks * groups * parts, [&](int64_t i) {
    const int64_t first = i % parts * kOutputsOfTask, image = i / parts / groups * images;
    ConvTask(s, x.typed_data(), kernel.typed_data(), y->typed_data(), i / parts % groups, image,
             std::min(image + images, s.batch), first, std::min(first + kOutputsOfTask, s.outputs));
  });
  return ffi::Error::Success();
}

ffi::Error WeightGradient(ffi::ThreadPool pool, Tensor x, Tensor dy, ffi::Result<Tensor> dw, int64_t groups,
                          int64_t top, int64_t left) {
  const auto xs = x.dimensions(), ys = dy.dimensions(), ks = dw->dimensions();
  const Shape s{xs[0], xs[1], xs[2], ys[1], ys[2], ks[0], ks[1], groups, ks[2], ks[3] / groups, top, left};
  const int64_t blocks = s.outputs / (kRegisters * kLanes), parts = (s.inputs + kInputsOfTask - 1) / kInputsOfTask;
  ParallelFor(pool, groups * blocks * parts, [&](int64_t i) {
    const int64_t first = i % parts * kInputsOfTask, last = std::min(first + kInputsOfTask, s.inputs);
    WeightGradientTask(s, x.typed_data(), dy.typed_data(), dw->typed_data(), i / parts / blocks,
                       i / parts % blocks * kRegisters * kLanes, first, last);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    R3ganGroupedConv, Conv,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<Tensor>()
        .Arg<Tensor>()
        .Ret<Tensor>()
        .Attr<int64_t>("groups")
        .Attr<int64_t>("top")
        .Attr<int64_t>("left"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    R3ganGroupedConvWeightGradient, WeightGradient,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<Tensor>()
        .Arg<Tensor>()
        .Ret<Tensor>()
        .Attr<int64_t>("groups")
        .Attr<int64_t>("top")
        .Attr<int64_t>("left"));
