// The context rule: a context of the right device is current at every launch, the caller's comes
// back.
#include <gtest/gtest.h>

#include "csrc/driver/device.h"
#include "tests/driver/fake_driver.h"

namespace fa4::driver::test {

TEST(Context, NoneCurrentTakesThePrimaryContextOfTheDevice) {
  FakeDriver fake;
  {
    const ContextGuard guard(fake.table, 1);
    ASSERT_TRUE(guard.status().ok());
    EXPECT_EQ(state.current, context(1));
  }
  EXPECT_EQ(state.current, context(1)) << "a thread without a context keeps the primary one";
}

TEST(Context, CurrentOfTheSameDeviceStaysEvenIfItIsNotThePrimary) {
  FakeDriver fake;
  state.current = context(11);  // a second context of device 1
  {
    const ContextGuard guard(fake.table, 1);
    EXPECT_EQ(state.current, context(11));
  }
  EXPECT_EQ(state.current, context(11));
}

TEST(Context, CurrentOfAnotherDeviceIsReplacedAndRestored) {
  FakeDriver fake;
  state.current = context(0);
  {
    const ContextGuard guard(fake.table, 1);
    EXPECT_EQ(state.current, context(1));
  }
  EXPECT_EQ(state.current, context(0));
}

TEST(Context, UnknownDeviceIsAnErrorAndChangesNothing) {
  FakeDriver fake;
  state.current = context(0);
  {
    const ContextGuard guard(fake.table, 7);
    EXPECT_FALSE(guard.status().ok());
    EXPECT_EQ(guard.status().code, Code::kRuntime);
  }
  EXPECT_EQ(state.current, context(0));
}

TEST(Device, InfoComesFromTheDriver) {
  FakeDriver fake;
  state.capability_major = 10;
  DeviceInfo info;
  ASSERT_TRUE(device_info(0, &info).ok());
  EXPECT_EQ(info.name, "Fake GPU");
  EXPECT_EQ(info.description, "cuda:0 (Fake GPU, sm_100)");
  EXPECT_EQ(info.major, 10);
  EXPECT_EQ(info.sms, 132);
}

TEST(Driver, MissingDriverIsNamed) {
  // Without a replacement the real driver answers: on a machine without one, by name.
  const Table* driver = nullptr;
  const Status status = table(&driver);
  if (!status.ok()) {
    EXPECT_NE(status.message.find("libcuda.so.1"), std::string::npos) << status.message;
  }
  ASSERT_NE(driver, nullptr);
}

}  // namespace fa4::driver::test
