// Grouped convolution for CPUs, float32, NHWC, stride 1: the two operations of grouped_conv.py.
//
// XLA has no fast path for it: its general convolution does not exploit that a group's 16 channels fill one or two vector
// registers. Here a task is one (image, group): the group's channels of the image are packed, zero-padded, into a
// contiguous buffer that stays in cache, and each output register accumulates over taps and input channels.
// The order of summation does not depend on the number of threads.

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

// The floats of a register, and how many registers sum at a time: AVX-512 has 32, AVX2 has 16. Compilers do badly with
// vectors that are wider than a register.
#ifdef __AVX512F__
constexpr int kLanes = 16, kSums = 16;
#else
constexpr int kLanes = 8, kSums = 8;
#endif
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

// One group's channels of one image, zero-padded: [padded_height, padded_width, inputs].
void PackPadded(const Shape& s, const float* image, int64_t group, float* packed) {
  const int64_t stride = s.groups * s.inputs, row = s.padded_width() * s.inputs;
  for (int64_t h = 0; h < s.padded_height(); ++h, packed += row) {
    const int64_t source = h - s.top;
    if (source < 0 || source >= s.height) {
      std::memset(packed, 0, row * sizeof(float));
      continue;
    }
    for (int64_t w = 0; w < s.padded_width(); ++w) {
      const int64_t column = w - s.left;
      float* to = packed + w * s.inputs;
      if (column < 0 || column >= s.width) {
        std::memset(to, 0, s.inputs * sizeof(float));
      } else {
        std::memcpy(to, image + (source * s.width + column) * stride + group * s.inputs, s.inputs * sizeof(float));
      }
    }
  }
}

// `Pixels` neighbouring outputs of one row, one register of output channels.
template <int Pixels>
inline void ConvPixels(const Shape& s, const float* packed, const float* kernel, float* out, int64_t out_stride) {
  Vector sum[Pixels] = {};
  const int64_t row = s.padded_width() * s.inputs;
  for (int64_t i = 0; i < s.kernel_height; ++i) {
    // Along a row, taps and their channels are contiguous both in the image and in the kernel.
    const float* x = packed + i * row;
    const int64_t terms = s.kernel_width * s.inputs;
    for (int64_t k = 0; k < terms; ++k, kernel += kLanes) {
      const Vector weight = Load(kernel);
#pragma GCC unroll 16
      for (int p = 0; p < Pixels; ++p) sum[p] += x[p * s.inputs + k] * weight;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) Store(out + p * out_stride, sum[p]);
}

void ConvTask(const Shape& s, const float* x, const float* kernels, float* y, int64_t image, int64_t group) {
  float* packed = Scratch(s.padded_height() * s.padded_width() * s.inputs, 0);
  PackPadded(s, x + image * s.height * s.width * s.groups * s.inputs, group, packed);
  const int64_t terms = s.kernel_height * s.kernel_width * s.inputs, stride = s.groups * s.outputs;
  float* kernel = Scratch(terms * kLanes, 1);
  for (int64_t block = 0; block < s.outputs; block += kLanes) {
    const float* from = kernels + group * s.outputs + block;
    for (int64_t k = 0; k < terms; ++k) Store(kernel + k * kLanes, Load(from + k * stride));
    for (int64_t h = 0; h < s.out_height; ++h) {
      const float* row = packed + h * s.padded_width() * s.inputs;
      float* out = y + ((image * s.out_height + h) * s.out_width) * stride + group * s.outputs + block;
      int64_t w = 0;
      for (; w + kSums <= s.out_width; w += kSums) {
        ConvPixels<kSums>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      }
      for (; w + 8 <= s.out_width; w += 8) ConvPixels<8>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      for (; w + 4 <= s.out_width; w += 4) ConvPixels<4>(s, row + w * s.inputs, kernel, out + w * stride, stride);
      for (; w < s.out_width; ++w) ConvPixels<1>(s, row + w * s.inputs, kernel, out + w * stride, stride);
    }
  }
}

// The gradient of one tap, `Inputs` input channels and one register of output channels, summed over one image.
template <int Inputs>
inline void TapGradient(const Shape& s, const float* packed, const float* dy, float* sum) {
  Vector total[Inputs];
#pragma GCC unroll 16
  for (int i = 0; i < Inputs; ++i) total[i] = Load(sum + i * kLanes);
  const int64_t row = s.padded_width() * s.inputs;
  for (int64_t h = 0; h < s.out_height; ++h) {
    const float* x = packed + h * row;
    for (int64_t w = 0; w < s.out_width; ++w, x += s.inputs, dy += kLanes) {
      const Vector d = Load(dy);
#pragma GCC unroll 16
      for (int i = 0; i < Inputs; ++i) total[i] += x[i] * d;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Inputs; ++i) Store(sum + i * kLanes, total[i]);
}

// One group and one register of its output channels, over all images.
void WeightGradientTask(const Shape& s, const float* x, const float* dys, float* dw, int64_t group, int64_t block) {
  const int64_t packed_size = s.padded_height() * s.padded_width() * s.inputs;
  const int64_t pixels = s.out_height * s.out_width, terms = s.kernel_height * s.kernel_width * s.inputs;
  const int64_t stride = s.groups * s.outputs;
  float* packed = Scratch(packed_size + pixels * kLanes, 0);
  float* dy = packed + packed_size;
  float* sums = Scratch(terms * kLanes, 1);
  std::memset(sums, 0, terms * kLanes * sizeof(float));
  for (int64_t image = 0; image < s.batch; ++image) {
    PackPadded(s, x + image * s.height * s.width * s.groups * s.inputs, group, packed);
    const float* from = dys + image * pixels * stride + group * s.outputs + block;
    for (int64_t p = 0; p < pixels; ++p) Store(dy + p * kLanes, Load(from + p * stride));
    float* sum = sums;
    for (int64_t i = 0; i < s.kernel_height; ++i) {
      for (int64_t j = 0; j < s.kernel_width; ++j) {
        const float* tap = packed + (i * s.padded_width() + j) * s.inputs;
        int64_t c = 0;
        for (; c + kSums <= s.inputs; c += kSums, sum += kSums * kLanes) TapGradient<kSums>(s, tap + c, dy, sum);
        for (; c + 4 <= s.inputs; c += 4, sum += 4 * kLanes) TapGradient<4>(s, tap + c, dy, sum);
        for (; c < s.inputs; ++c, sum += kLanes) TapGradient<1>(s, tap + c, dy, sum);
      }
    }
  }
  for (int64_t k = 0; k < terms; ++k) Store(dw + k * stride + group * s.outputs + block, Load(sums + k * kLanes));
}

using Tensor = ffi::Buffer<ffi::F32, 4>;

ffi::Error Conv(ffi::ThreadPool pool, Tensor x, Tensor kernel, ffi::Result<Tensor> y, int64_t groups, int64_t top,
                int64_t left) {
  const auto xs = x.dimensions(), ks = kernel.dimensions(), ys = y->dimensions();
  const Shape s{xs[0], xs[1], xs[2], ys[1], ys[2], ks[0], ks[1], groups, ks[2], ks[3] / groups, top, left};
  ParallelFor(pool, s.batch * groups, [&](int64_t i) {
    ConvTask(s, x.typed_data(), kernel.typed_data(), y->typed_data(), i / groups, i % groups);
  });
  return ffi::Error::Success();
}

ffi::Error WeightGradient(ffi::ThreadPool pool, Tensor x, Tensor dy, ffi::Result<Tensor> dw, int64_t groups,
                          int64_t top, int64_t left) {
  const auto xs = x.dimensions(), ys = dy.dimensions(), ks = dw->dimensions();
  const Shape s{xs[0], xs[1], xs[2], ys[1], ys[2], ks[0], ks[1], groups, ks[2], ks[3] / groups, top, left};
  const int64_t blocks = s.outputs / kLanes;
  ParallelFor(pool, groups * blocks, [&](int64_t i) {
    WeightGradientTask(s, x.typed_data(), dy.typed_data(), dw->typed_data(), i / blocks, i % blocks * kLanes);
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
